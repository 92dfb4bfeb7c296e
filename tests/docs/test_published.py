"""docs/benchmarks/paper.md shows the published results of the data file."""

import importlib.util

from helpers import ROOT

from diffguard_pl.report.published import published


def test_the_page_shows_the_data_file():
    file = ROOT / "scripts" / "docs" / "published.py"
    specification = importlib.util.spec_from_file_location("published_script", file)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    page = script.PAGE.read_text(encoding="utf-8")
    assert script.with_tables(page) == page, "run python scripts/docs/published.py"
    shown = page.partition(script.BEGIN)[2].partition(script.END)[0]
    for row in published():
        (line,) = (
            line
            for line in script.table(row.table).splitlines()
            if line.startswith(f"| {row.method} |")
        )
        assert line in shown
        assert f"{100 * row.auroc:.2f}" in line
