"""The documentation says what is there: messages, pages, configs, modules and code. The site itself is built by `make docs`."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from diffguard_pl.config import config_names

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
MADE = {"settings.md", "configs.md"}
"""Pages that scripts/docs/reference.py makes."""
OURS = {"mine", "NAME", "CONFIG"}
"""Configs that stand for the reader's."""
COMING = {"demo"}
"""Modules that are described before they are there."""
LITERAL = 8
"""Letters, at least, that a message has in common with its place in the source."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@cache
def messages() -> list[re.Pattern[str]]:
    """Every text of the source, with `.*` for what is filled in."""
    sources = [path for folder in ("diffguard_pl", "datamodules", "callbacks") for path in (ROOT / folder).rglob("*.py")]
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


def quoted() -> Iterator[str]:
    for block in fenced((DOCS / "faq.md").read_text(), "console"):
        yield from block.splitlines()


@pytest.mark.parametrize("line", list(quoted()))
def test_a_message_of_the_faq_is_one_of_the_source(line):
    assert any(pattern.fullmatch(text) for pattern in messages() for text in (line, line.removeprefix("error: ")))


def test_the_faq_has_its_messages():
    assert len(list(quoted())) >= 20


def test_every_page_is_in_the_navigation_once():
    def leaves(entry) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from leaves(part)

    listed = list(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted({page.relative_to(DOCS).as_posix() for page in PAGES} | MADE)


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_config_that_is_named_is_there(path):
    text = re.sub(r"^```console\n.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = {config.removesuffix(".yaml") for config in re.findall(r"--config[ =]([\w/]+(?:\.yaml)?)", text)}
    assert named - {"runs/CONFIG/TIME/config"} <= {*config_names(), *OURS}


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_module_that_is_run_is_there(path):
    for module in set(re.findall(r"-m (diffguard_pl\.\w+)", path.read_text())):
        if module.partition(".")[2] not in COMING:
            assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_the_python_in_it_can_be_parsed(path):
    for block in fenced(path.read_text(), "python"):
        ast.parse(block)


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_the_yaml_in_it_can_be_parsed(path):
    for block in fenced(path.read_text(), "yaml"):
        assert isinstance(yaml.safe_load(block), dict)
