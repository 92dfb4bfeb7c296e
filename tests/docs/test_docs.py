"""The documentation says what is there: messages, pages, configs, modules and code. The site itself is built by `make docs`."""

import argparse
import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from pytorch_lightning.cli import LightningArgumentParser

from diffguard_pl.commands import calibrate, score
from diffguard_pl.config import config_names
from diffguard_pl.scores.baselines.collection import find
from diffguard_pl.scores.baselines.names import BASELINES

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
MADE = {"settings.md", "configs.md"}
"""Pages that scripts/docs/reference.py makes."""
OURS = {"mine", "NAME", "CONFIG"}
"""Configs that stand for the reader's."""
LITERAL = 8
"""Letters, at least, that a message has in common with its place in the source."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@cache
def messages() -> list[re.Pattern[str]]:
    """Every text of the source, with `.*` for what is filled in."""
    sources = [
        path
        for folder in ("diffguard_pl", "datamodules", "callbacks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    nodes = (node for path in sources for node in ast.walk(ast.parse(path.read_text())))
    return [re.compile(pattern, re.DOTALL) for pattern in filter(None, map(pattern_of, nodes))]


def pattern_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = [node.value]
    else:
        return None
    if sum(len(part) for part in parts if part) < LITERAL:
        return None
    return "".join(".*" if part is None else re.escape(part) for part in parts)


def quoted(pages: list[Path]) -> list[str]:
    blocks = (block for page in pages for block in fenced(page.read_text(), "console"))
    return [line for block in blocks for line in block.splitlines()]


FAQ = quoted([DOCS / "faq.md"])
ERRORS = [line for line in quoted(PAGES) if line.startswith("error: ")]


@pytest.mark.parametrize("line", list(dict.fromkeys([*FAQ, *ERRORS])))
def test_a_message_of_the_pages_is_one_of_the_source(line):
    assert any(
        pattern.fullmatch(text)
        for pattern in messages()
        for text in (line, line.removeprefix("error: "))
    )


def test_the_faq_has_its_messages():
    assert len(FAQ) >= 20


def test_every_page_is_in_the_navigation_once():
    def leaves(entry) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for part in (
            entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
        ):
            yield from leaves(part)

    listed = list(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted({page.relative_to(DOCS).as_posix() for page in PAGES} | MADE)


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_config_that_is_named_is_there(path):
    text = re.sub(r"^```console\n.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = {
        config.removesuffix(".yaml")
        for config in re.findall(r"--config[ =]([\w/]+(?:\.yaml)?)", text)
    }
    assert named - {"runs/CONFIG/TIME/config"} <= {*config_names(), *OURS}


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_module_that_is_run_is_there(path):
    for module in set(re.findall(r"-m (diffguard_pl\.\w+)", path.read_text())):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_script_that_is_named_is_there(path):
    for script in set(
        re.findall(r"\b((?:examples|recipes|benchmarks|tests)/\w+\.py)\b", path.read_text())
    ):
        assert (ROOT / script).is_file(), script


def test_the_commands_of_a_detector_take_the_options_that_are_listed():
    page = (DOCS / "how-to" / "calibrate-and-deploy.md").read_text()
    for part, listed in (
        ("Calibrate", calibrate_options()),
        ("Score images", options_of(score._parser())),
    ):
        (section,) = re.findall(rf"^## {part}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
        named = {
            option
            for line in section.splitlines()
            if line.startswith("| `--")
            for option in re.findall(r"`(--[\w.-]+)", line)
        }
        assert named
        assert named <= listed, named - listed


def test_the_fields_of_a_decision_are_listed():
    page = (DOCS / "how-to" / "calibrate-and-deploy.md").read_text()
    assert all(f"`{column}`" in page for column in score.COLUMNS if column != "path")


def test_baselines_are_listed_with_their_settings():
    page = (DOCS / "how-to" / "baselines.md").read_text()
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(lines) == list(BASELINES)
    for baseline in BASELINES:
        for parameter in fields(find(baseline)):
            assert f"`{parameter.name}`" in lines[baseline]


def calibrate_options() -> set[str]:
    parser = LightningArgumentParser()
    calibrate.CalibrateCLI.add_arguments_to_parser(object.__new__(calibrate.CalibrateCLI), parser)
    return options_of(parser) | {"--trainer.devices"}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_the_python_in_it_can_be_parsed(path):
    for block in fenced(path.read_text(), "python"):
        ast.parse(block)


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_the_yaml_in_it_can_be_parsed(path):
    for block in fenced(path.read_text(), "yaml"):
        assert isinstance(yaml.safe_load(block), dict)
