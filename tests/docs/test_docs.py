"""The pages agree with the program: their Python runs, and what they quote and name exists.

`make docs` builds the site and checks its links.
"""

import argparse
import ast
import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, layouts
from pytorch_lightning.cli import LightningArgumentParser

from diffguard_pl.__main__ import COMMANDS
from diffguard_pl.commands import calibrate, score, serve
from diffguard_pl.config import config_names, load_data
from diffguard_pl.deploy.decision_log import COLUMNS
from diffguard_pl.scores.baselines.collection import find
from diffguard_pl.scores.baselines.from_pytorch_ood import REFUSED
from diffguard_pl.scores.baselines.names import BASELINES
from diffguard_pl.scores.path.base import MeasuredScore
from diffguard_pl.scores.path.collection import find as find_path_score
from diffguard_pl.scores.path.names import PATH_SCORES
from diffguard_pl.serve.metrics import Metrics

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
GENERATED = {"reference/settings.md", "reference/configs.md"}  # by scripts/docs/reference.py
PLACEHOLDERS = {"mine", "NAME", "CONFIG"}  # configs of the reader
SHORTEST_LITERAL = 8  # letters that a message must share with its place in the source


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    fence = rf"^```{language}\n(.*?)^```$"
    return re.findall(fence, path.read_text(), re.DOTALL | re.MULTILINE)


# ------------------------------------------------------------------------------- behaviour


def printed_by(source: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(source, "docs", "exec"), {"__name__": "docs"})
    return output.getvalue()


def test_the_quickstart_prints_what_its_page_shows():
    (source,) = blocks(DOCS / "tutorials" / "quickstart.md", "python")
    labels, scores = printed_by(source).splitlines()
    page = (DOCS / "tutorials" / "quickstart.md").read_text()
    assert f"    {labels}\n" in page
    assert f"    {scores}\n" in page


def test_the_guarded_classifier_of_the_tutorial_rejects_what_it_does_not_know(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    source = "\n".join(blocks(DOCS / "tutorials" / "guard-a-classifier.md", "python"))
    printed = printed_by(source.replace("[:100]", "[:30]"))
    rates = re.findall(r"^(.+): (\d+)% accepted by maps, (\d+)% by msp$", printed, re.MULTILINE)
    by_maps = {name: int(maps) for name, maps, _ in rates}
    assert by_maps["known digits"] >= 85
    assert by_maps["4s and 9s"] <= 50
    assert by_maps["photos"] <= 20


def test_fitted_baselines_run_as_their_page_says():
    (source,) = blocks(DOCS / "how-to" / "baselines.md", "python")
    assert printed_by(source).startswith("tensor([-")


def test_dataloaders_run_as_their_page_says():
    (source,) = blocks(DOCS / "how-to" / "own-data.md", "python")
    first, *_ = printed_by(source).splitlines()
    dataset, metric = first.rsplit(" maps ", 1)
    assert dataset == "fours and nines"
    assert float(metric) > 0.9


def test_metrics_agree_with_those_of_pytorch_ood_as_their_page_shows():
    path = DOCS / "how-to" / "from-other-tools.md"
    (source,) = blocks(path, "python")
    lines = printed_by(source).splitlines()
    assert "\n".join(f"    {line}" for line in lines) in path.read_text()
    pairs = [line.split()[-2:] for line in lines[:-1]]
    assert all(here == there for here, there in pairs)


def test_a_benchmark_of_image_lists_is_read_as_its_page_says(tmp_path, monkeypatch):
    (text,) = blocks(DOCS / "how-to" / "openood-pytorch-ood.md", "yaml")
    monkeypatch.chdir(tmp_path)
    layouts.save(tmp_path / "data" / "midog", ["1a/017/a.png", "b.png"], side=60)
    for file in re.findall(r"file: (\S+),", text):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("1a/017/a.png 0\nb.png 2\n")
    Path("mine.yaml").write_text(f"base: digits_ldm\n{text}")
    data = load_data(["mine.yaml"])
    assert set(data.groups.values()) == {"csid", "near", "far"}
    labels = {name: dataset[1]["label"] for name, dataset in data.datasets().items()}
    shifted = [name for name, group in data.groups.items() if group == "csid"]
    assert labels == {name: 2 if name in ("midog", *shifted) else -1 for name in labels}


# ------------------------------------------------------------------------- one case a page


@cache
def messages() -> list[re.Pattern[str]]:
    """Return every text of the source, with `.*` for what is filled in."""
    patterns = []
    for folder in ("diffguard_pl", "datamodules", "callbacks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                pattern = pattern_of(node)
                if pattern is not None:
                    patterns.append(re.compile(pattern, re.DOTALL))
    return patterns


def pattern_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = [node.value]
    else:
        return None
    if sum(len(part) for part in parts if part) < SHORTEST_LITERAL:
        return None
    return "".join(".*" if part is None else re.escape(part) for part in parts)


def is_message(line: str) -> bool:
    texts = (line, line.removeprefix("error: "))
    return any(pattern.fullmatch(text) for pattern in messages() for text in texts)


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_what_a_page_names_exists(path: Path):
    text = path.read_text()

    # Quoted errors are messages of the source.
    quoted = [line for block in blocks(path, "console") for line in block.splitlines()]
    if path.name != "faq.md":
        quoted = [line for line in quoted if line.startswith("error: ")]
    assert [line for line in quoted if not is_message(line)] == []

    # Configs, commands and scripts.
    prose = re.sub(r"^```console\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"--config[ =]([\w/]+(?:\.yaml)?)", prose)
    configs = {config.removesuffix(".yaml") for config in named}
    assert configs - {"runs/CONFIG/TIME/config"} <= {*config_names(), *PLACEHOLDERS}
    commands = re.findall(r"(?:^|`|\$ |\| |=\")(?:    )?diffguard-pl ([a-z]+)", prose, re.MULTILINE)
    assert {*commands} <= COMMANDS.keys()
    modules = {*re.findall(r"-m (diffguard_pl\.\w+)", prose)}
    assert modules <= {"diffguard_pl.test"}
    scripts = re.findall(r"\b((?:examples|recipes|benchmarks|docs/figures)/\w+\.py)\b", prose)
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_the_code_of_a_page_is_valid(path: Path):
    for block in blocks(path, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffguard_pl"):
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{node.module} has no {missing}"


# --------------------------------------------------------------------------- complete lists


def leaves(entry) -> Iterator[str]:
    """Yield the pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for part in entry.values():
            yield from leaves(part)
    else:
        for part in entry:
            yield from leaves(part)


def test_every_page_is_in_the_navigation_once():
    listed = list(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {page.relative_to(DOCS).as_posix() for page in PAGES}
    assert sorted(listed) == sorted(pages | GENERATED)


def test_every_page_is_of_the_kind_of_its_tab():
    """A tab is a folder, by Diataxis, and begins with a page that lists the others."""
    kinds = ["tutorials", "how-to", "reference", "explanation", "benchmarks"]
    home, *tabs = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert home == {"Home": "index.md"}
    for kind, tab in zip(kinds, tabs, strict=True):
        ((_, (index, *pages)),) = tab.items()
        assert index == f"{kind}/index.md"
        text = (DOCS / index).read_text()
        for page in leaves(pages):
            folder, _, inside = page.partition("/")
            assert folder == kind
            assert f"]({inside})" in text or inside.startswith("api/")


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def options_of_calibrate() -> set[str]:
    parser = LightningArgumentParser()
    cli = object.__new__(calibrate.CalibrateCLI)
    calibrate.CalibrateCLI.add_arguments_to_parser(cli, parser)
    return options_of(parser) | {"--trainer.devices"}


@pytest.mark.parametrize("section", ["Calibrate", "Score images"])
def test_the_options_that_are_listed_exist(section: str):
    options = options_of_calibrate() if section == "Calibrate" else options_of(score.parser())
    page = (DOCS / "how-to" / "calibrate-and-deploy.md").read_text()
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("| `--")]
    listed = {option for row in rows for option in re.findall(r"`(--[\w.-]+)", row)}
    assert listed
    assert listed <= options


def test_every_option_and_metric_of_the_server_is_listed():
    page = (DOCS / "how-to" / "serve.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `--")]
    listed = {option for row in rows for option in re.findall(r"`(--[\w.-]+)", row)}
    assert listed == options_of(serve.parser()) - {"-h", "--help"}
    metrics = re.findall(r"^# TYPE (\w+)", Metrics().text(0, 0), re.MULTILINE)
    assert [metric for metric in metrics if f"`{metric}" not in page] == []


def test_the_fields_of_a_decision_are_listed():
    page = (DOCS / "how-to" / "calibrate-and-deploy.md").read_text()
    assert [column for column in COLUMNS if column != "path" and f"`{column}`" not in page] == []


def test_baselines_are_listed_with_their_settings():
    page = (DOCS / "how-to" / "baselines.md").read_text().partition("\n## ")[0]
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(rows) == list(BASELINES)
    for baseline in BASELINES:
        for setting in fields(find(baseline)):
            assert f"`{setting.name}`" in rows[baseline]


def test_what_pytorch_ood_has_and_is_not_supported_is_listed_with_the_reason():
    page = (DOCS / "how-to" / "baselines.md").read_text()
    for name in REFUSED:
        assert f"`{name}`" in page


def test_path_scores_are_listed_with_their_evaluations():
    page = (DOCS / "how-to" / "path-scores.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(PATH_SCORES)
    for name, row in zip(PATH_SCORES, rows, strict=True):
        score = find_path_score(name)()
        _, _, _, evaluations, fitted, _, _ = (cell.strip() for cell in row.split("|"))
        if isinstance(score, MeasuredScore):
            assert int(evaluations) == score.nfe
        assert fitted == ("yes" if score.tensors else "no")


def test_the_faq_quotes_its_errors():
    assert (
        sum(len(block.splitlines()) for block in blocks(DOCS / "how-to" / "faq.md", "console"))
        >= 20
    )
