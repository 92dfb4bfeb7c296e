"""Marks for the compiler of torch, which is not imported along with diffusers."""

import sys
from importlib import import_module

import pytest
import torch
from torch import nn

from diffguard_pl.backbones import diffusers_import
from diffguard_pl.backbones.diffusers_import import (
    CompilerFinder,
    compiler_postponed,
    diffusers_class,
)
from diffguard_pl.backbones.load import WithoutRandomValues


@pytest.fixture
def finder(tmp_path, monkeypatch) -> CompilerFinder:
    """Finder for a small compiler, and a module that imports it as one of diffusers does."""
    compiler = "marked = []\ndef allow_in_graph(what):\n    marked.append(what)\n    return what\n"
    (tmp_path / "small_compiler.py").write_text(compiler)
    (tmp_path / "marking_module.py").write_text(
        "try:\n    from small_compiler import allow_in_graph as maybe_allow_in_graph\n"
        "except ImportError:\n    maybe_allow_in_graph = None\n"
    )
    (tmp_path / "other_module.py").write_text("import small_compiler\n")
    monkeypatch.setattr(diffusers_import, "COMPILER", "small_compiler")
    monkeypatch.setattr(diffusers_import, "MARKING_MODULE", "marking_module")
    monkeypatch.syspath_prepend(tmp_path)
    finder = CompilerFinder()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    yield finder
    for name in ("small_compiler", "marking_module", "other_module"):
        sys.modules.pop(name, None)


def test_marks_are_made_when_the_compiler_is_imported(finder):
    finder.import_marking_module()
    mark = sys.modules["marking_module"].maybe_allow_in_graph
    assert mark(int) is int
    assert "small_compiler" not in sys.modules

    compiler = import_module("small_compiler")
    assert compiler.marked == [int]
    assert mark(str) is str
    assert compiler.marked == [int, str]


def test_the_compiler_is_hidden_from_the_marking_module_alone(finder):
    finder.is_hiding = True
    import_module("other_module")
    assert "small_compiler" in sys.modules


def test_a_function_that_is_disabled_before_the_compiler_is_there_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys.modules.get("torch._dynamo"))
    before = torch.compiler.disable
    del sys.modules["torch._dynamo"]
    with compiler_postponed():
        assert torch.compiler.disable is not before

        @torch.compiler.disable
        def double(x: int) -> int:
            return 2 * x

        @torch.compiler.disable(recursive=False)
        def triple(x: int) -> int:
            return 3 * x

    assert torch.compiler.disable is before
    monkeypatch.undo()
    assert (double(2), triple(2)) == (4, 6)


def test_classes_that_diffusers_marks_are_marked_for_the_compiler():
    diffusers_class("UNet2DModel")
    attention = import_module("diffusers.models.attention_processor").Attention
    import torch._dynamo.trace_rules

    assert torch._dynamo.trace_rules.is_callable_allowed(attention)


def test_tensors_without_values_are_given_no_random_ones():
    with WithoutRandomValues():
        on_meta = nn.Sequential(nn.Linear(2, 3, device="meta"), nn.Embedding(2, 3, device="meta"))
        drawn = nn.Linear(2, 3)
    assert all(parameter.is_meta for parameter in on_meta.parameters())
    assert drawn.weight.abs().min() > 0
