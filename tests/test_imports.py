"""Tests of faster imports."""

import gc
import sys
from importlib import import_module

import pytest

from diffguard_pl.imports import PostponingFinder, garbage_collection_paused


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Package whose code counts how often it runs, with a submodule, and postponed."""
    folder = tmp_path / "postponed_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import sys\nsys.runs.append(__name__)\nfrom .sub import value\n__all__ = ['value']\n"
    )
    (folder / "sub.py").write_text("value = 7\n")
    runs: list[str] = []
    monkeypatch.setattr(sys, "runs", runs, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [PostponingFinder(["postponed_package"]), *sys.meta_path])
    yield runs
    for name in ("postponed_package", "postponed_package.sub"):
        sys.modules.pop(name, None)


def test_a_submodule_is_imported_without_its_package(package):
    assert import_module("postponed_package.sub").value == 7
    assert package == []


def test_a_postponed_package_runs_once_when_an_attribute_is_used(package):
    module = import_module("postponed_package")
    assert module.__file__.endswith("__init__.py")
    assert package == []
    assert module.value == 7
    assert "value" in dir(module)
    assert sys.modules["postponed_package"] is module
    assert package == ["postponed_package"]
    with pytest.raises(AttributeError, match=r"postponed_package.*'other'"):
        _ = module.other


@pytest.mark.parametrize(
    "statement", ["from postponed_package import value", "from postponed_package import *"]
)
def test_names_of_a_postponed_package_can_be_imported(package, statement):
    names: dict[str, int] = {}
    exec(statement, names)
    assert names["value"] == 7


def test_the_garbage_collector_is_as_before_after_a_pause():
    with garbage_collection_paused():
        assert not gc.isenabled()
        with garbage_collection_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
