"""Import of diffusers without the compiler of torch, which takes as long to import as torch itself.

Modules of diffusers mark some classes and functions for the compiler when they are imported. Here
this imports the compiler no more: the marks are made once something else does, such as ``compile``
of this package or ``torch.compile``.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

from ..imports import garbage_collection_paused, postpone_imports

COMPILER = "torch._dynamo"
MARKING_MODULE = "diffusers.utils.torch_utils"
"""Module of diffusers that imports the compiler for its mark, and does without if it must."""

# What diffusers imports along with the networks that are used here: all its other networks, and
# libraries of its schedulers.
postpone_imports(
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "scipy.integrate",
    "scipy.stats",
)


def diffusers_class(name: str) -> Any:
    """Import a class of diffusers."""
    with garbage_collection_paused(), compiler_postponed(), warnings.catch_warnings():
        # In a notebook without ipywidgets, tqdm would ask for them; nothing here shows a bar.
        warnings.filterwarnings("ignore", "IProgress not found")
        return getattr(import_module("diffusers"), name)


@contextmanager
def compiler_postponed() -> Iterator[None]:
    """Let the modules of diffusers that are imported inside mark for the compiler without it."""
    if COMPILER in sys.modules or not hasattr(torch, "_disable_dynamo"):
        yield
        return
    finder, disable = CompilerFinder.installed(), torch.compiler.disable
    torch.compiler.disable = _disable_later
    try:
        if MARKING_MODULE not in sys.modules:
            finder.import_marking_module()
        yield
    finally:
        torch.compiler.disable = disable


def _disable_later(fn: Any = None, recursive: bool = True, **reason: Any) -> Any:
    """Return torch's own wrapper of a function, which imports the compiler when it is called."""
    return torch._disable_dynamo(fn, recursive)


class CompilerFinder(MetaPathFinder):
    """Finder that remembers marks, and makes them once the compiler has been imported."""

    def __init__(self) -> None:
        self.marked: list[Any] = []
        self.compiler: Any = None
        self.is_hiding = False

    @classmethod
    @cache
    def installed(cls) -> "CompilerFinder":
        """Return the finder of this process."""
        finder = cls()
        sys.meta_path.insert(0, finder)
        return finder

    def import_marking_module(self) -> None:
        """Import the module that marks, and let it use this finder for the compiler."""
        self.is_hiding = True
        try:
            module = import_module(MARKING_MODULE)
        except ImportError:  # another version of diffusers: it imports what it likes
            return
        finally:
            self.is_hiding = False
        module.maybe_allow_in_graph = self.allow_in_graph  # type: ignore[attr-defined]

    def allow_in_graph(self, marked: Any) -> Any:
        """Mark as ``torch._dynamo.allow_in_graph`` does, now or once that has been imported."""
        if self.compiler is not None:
            return self.compiler.allow_in_graph(marked)
        self.marked.append(marked)
        return marked

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != COMPILER:
            return None
        if self.is_hiding and _importing_module() == MARKING_MODULE:
            raise ModuleNotFoundError(f"{COMPILER} is imported later", name=fullname)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._marking(spec.loader)  # type: ignore
        return spec

    def _marking(self, loader: Loader) -> Callable[[ModuleType], None]:
        """Return what runs the compiler's code as a loader does, and then makes the marks."""
        run = loader.exec_module

        def run_and_mark(module: ModuleType) -> None:
            run(module)
            self.compiler = module
            for marked in self.marked:
                self.compiler.allow_in_graph(marked)

        return run_and_mark


def _importing_module() -> str:
    """Return the name of the module whose import statement has called a finder."""
    frame = sys._getframe(2)
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("importlib"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__"))
