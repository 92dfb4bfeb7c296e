"""The build context of the Dockerfile; no test builds the image, which takes an engine."""

import pytest
from helpers import ROOT

tomllib = pytest.importorskip("tomllib")  # of Python 3.11


def test_the_build_context_is_what_the_package_is_built_from():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    context = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert [name for name in context if not (ROOT / name).exists()] == []

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, setuptools = settings["project"], settings["tool"]["setuptools"]
    folders = setuptools["package-dir"]
    needed = {"pyproject.toml", "constraints.txt", project["readme"], *project["license-files"]}
    needed |= {
        folders.get(package, package.replace(".", "/")) for package in setuptools["packages"]
    }
    assert {path.split("/")[0] for path in needed} == context
