"""The report command: ``diffguard-pl report RUN_DIR [MORE_RUNS]``.

Rebuilds table, plots, pictures and page of each run from its folder, without models or data; for several runs, compares them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..report.build import build
from ..report.page.write import write_comparison_page
from ..report.results import read_results
from ..report.tables import (
    cascade_table,
    compare,
    comparison_table,
    result_table,
    terminal,
    write_comparison,
)


def main(args: list[str] | None = None) -> None:
    """Report as the command line says."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl report",
        description="Rebuild the report of a run, or compare runs.",
    )
    parser.add_argument("run", type=Path, nargs="+", help="folder of a run")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("comparison.html"),
        help="page of the comparison, .html; its table goes beside it",
    )
    given = parser.parse_args(args)
    try:
        report(given.run, given.out)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def report(folders: Sequence[Path], comparison: Path | None = None) -> None:
    """Build and print the report of each run, and of several how they compare.

    Args:
        folders: of the runs.
        comparison: page of the comparison.

    Raises:
        InputError: a run cannot be read, a file not be written, or the page is no .html.
    """
    if comparison is not None and comparison.suffix.lower() != ".html":
        raise InputError(
            f"--out {comparison}: expected a file name that ends in .html; the table goes beside it, as .csv"
        )
    console = terminal()
    runs = [read_results(folder) for folder in folders]
    for run in runs:
        headline, datasets = run.header.scores[0], run.header.datasets
        console.print(
            result_table(
                run.rows, headline, datasets, run.sizes, run.left_out, run.accuracy, run.unfinished
            )
        )
        if run.curve:
            console.print(cascade_table(run.curve, run.budget))
        for path in build(run)[-1:]:
            console.print(f"   report: {path}", soft_wrap=True)
    if len(runs) > 1 and comparison is not None:
        lines = compare(runs)
        console.print(comparison_table(runs, lines))
        write_comparison(runs, lines, comparison.with_suffix(".csv"))
        write_comparison_page(runs, lines, comparison)
        console.print(f"comparison: {comparison}", soft_wrap=True)
