"""Imports go one way, from the commands down to the mathematics, and never in a circle."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = "diffguard_pl"
FOLDERS = (PACKAGE, "callbacks", "datamodules")

# Which parts of the package (folders and files of diffguard_pl/) each part may import.
BASICS = {
    "dtypes",
    "errors",
    "imports",
    "layout",
    "names",
    "random_by_index",
    "yaml_file",
}
MAY_IMPORT = {
    "dtypes": set(),
    "errors": set(),
    "imports": set(),
    "layout": set(),
    "names": set(),
    "trusted": {"errors"},
    "random_by_index": set(),
    "yaml_file": {"errors", "yaml_names"},
    "yaml_names": set(),
    "diffusion": BASICS,
    "metrics": BASICS,
    "runs": BASICS | {"metrics"},
    "checkpoints": BASICS | {"runs"},
    "classifiers": BASICS | {"checkpoints"},
    "backbones": BASICS | {"checkpoints", "diffusion", "runs"},
    "stages": BASICS | {"classifiers", "diffusion"},
    "engine": BASICS | {"diffusion", "stages"},
    "scores": BASICS | {"checkpoints", "classifiers", "diffusion", "metrics", "runs", "stages"},
    "diffguard": BASICS | {"backbones", "classifiers", "diffusion", "engine", "scores", "stages"},
    "description": BASICS | {"diffguard"},
    "config_errors": BASICS | {"backbones", "diffusion"},
    "datamodules": BASICS | {"checkpoints"},
    "config": BASICS | {"trusted", "config_errors", "datamodules", "diffguard", "evaluation"},
    "evaluation": BASICS
    | {"datamodules", "description", "diffguard", "diffusion", "engine", "metrics", "runs"}
    | {"scores", "stages"},
    "report": BASICS | {"metrics", "runs", "scores"},
    "deploy": BASICS
    | {"trusted"}
    | {"checkpoints", "config", "datamodules", "description", "diffguard", "runs", "scores"}
    | {"stages"},
    "callbacks": BASICS
    | {"datamodules", "diffusion", "evaluation", "metrics", "report", "runs", "stages"},
    "web": BASICS,
    "serve": BASICS | {"datamodules", "deploy", "web"},
    "demo": BASICS | {"datamodules", "deploy", "report", "web"},
}
ANYTHING = {"__init__", "__main__", "commands", "test"}
DATA = {"configs", "weights"}

# Libraries that only these parts may import.
ONLY_IN = {
    "pytorch_lightning": {"callbacks", "commands", "config", "datamodules", "evaluation"},
    "diffusers": {"backbones"},
    "wandb": {"callbacks"},
    "argparse": {"checkpoints", "commands", "config", "config_errors"},
    "gradio": {"demo"},
    "starlette": {"demo", "serve", "web"},
    "fastapi": {"demo", "serve"},
    "uvicorn": {"demo", "serve"},
    "filelock": {"runs"},
    # Windows lacks these.
    "fcntl": set(),
    "resource": {"callbacks"},
}
TORCH_ALONE = {"diffusion", "engine"}


@cache
def modules() -> dict[str, Path]:
    """Map the dotted names of the package's modules to their files."""
    found = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[0] != PACKAGE:
                parts = (PACKAGE, *parts)
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports(module: str) -> Iterator[str]:
    """Yield the modules of the package and the top-level libraries that a module imports."""
    file = modules()[module]
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name if alias.name.startswith(PACKAGE) else alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                source = ".".join([*above, source] if source else above)
            if not source.startswith(PACKAGE):
                yield source.split(".")[0]
                continue
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield submodule if submodule in modules() else source


def part_of(module: str) -> str:
    """Return the folder or file of diffguard_pl/ that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def test_the_wheel_has_every_folder():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'^  "(diffguard_pl[\w.]*)",$', text, re.MULTILINE)
    folders = {
        name if file.name == "__init__.py" else name.rpartition(".")[0]
        for name, file in modules().items()
    }
    assert folders <= {*listed}


def test_every_part_has_a_rule():
    parts = {part_of(module) for module in modules()} - DATA
    assert parts == MAY_IMPORT.keys() | ANYTHING


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_imports_go_down(part: str):
    for module in modules():
        if part_of(module) != part:
            continue
        for target in imports(module):
            if target.startswith(f"{PACKAGE}.") and part_of(target) != part:
                assert part_of(target) in MAY_IMPORT[part], f"{module} imports {target}"


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_imported_in_its_parts_alone(library: str):
    importers = {part_of(module) for module in modules() if library in imports(module)}
    assert importers <= ONLY_IN[library]


@pytest.mark.parametrize("part", sorted(TORCH_ALONE))
def test_the_mathematics_knows_torch_alone(part: str):
    libraries = {"diffusers", "matplotlib", "numpy", "pandas", "piq", "scipy", "torchvision"}
    for module in modules():
        if part_of(module) == part:
            assert not libraries & set(imports(module)), module


def test_no_import_runs_in_a_circle():
    graph = {
        module: {target for target in imports(module) if target in modules()} - {module, PACKAGE}
        for module in modules()
        if module != PACKAGE
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))
