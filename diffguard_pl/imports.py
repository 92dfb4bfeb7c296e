"""Faster starts with large libraries: without garbage collection, and without what nobody uses.

diffusers imports every model and scheduler that it has for the sake of one, and the import of torch
and its kin creates so many objects that looking for garbage among them takes a fifth of the time.
"""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from threading import RLock
from types import ModuleType
from typing import Any


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause the garbage collector during imports, whose objects stay anyway."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def exiting_at_once_after_help() -> Iterator[None]:
    """End the process as soon as it has printed the text of ``--help``.

    At the end of a process Python looks for garbage among the objects of torch and Lightning once
    more, which takes about half as long as the import of torch.
    """
    try:
        yield
    except SystemExit as end:
        if end.code or not {"-h", "--help"} & set(sys.argv[1:]):
            raise
        # Where the text cannot be written, Python reports it as it always does.
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        raise


def postpone_imports(*names: str) -> None:
    """Postpone the code of modules until something uses an attribute of theirs.

    A package's own code, ``__init__.py``, is passed by when only its submodules are imported. A
    module that has been imported already, or that does not exist, is left alone.

    Args:
        names: Full names of the modules.
    """
    sys.meta_path.insert(0, PostponingFinder(names))


class PostponingFinder(MetaPathFinder):
    """Finder that gives some modules of Python code a :class:`PostponingLoader`.

    Args:
        names: Full names of the modules.
    """

    def __init__(self, names: Sequence[str]):
        self.names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = PostponingLoader(spec.loader)
        return spec


class PostponingLoader(Loader):
    """Loader that makes a module without running its code.

    importlib's LazyLoader does not serve: it runs the code when a submodule asks for ``__path__``,
    or :mod:`inspect` for ``__file__``.

    Args:
        loader: Loader that runs the code.
    """

    def __init__(self, loader: Loader):
        self.loader = loader
        self.lock = RLock()
        self.is_running = self.has_run = False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader_state = self
        module.__spec__.loader = module.__loader__ = self.loader
        module.__class__ = PostponedModule

    def run(self, module: ModuleType) -> None:
        """Run the module's code, once; other threads wait for it."""
        with self.lock:
            if self.is_running or self.has_run:
                return
            self.is_running = True
            try:
                self.loader.exec_module(module)
                module.__class__ = ModuleType
                self.has_run = True
            finally:
                self.is_running = False


class PostponedModule(ModuleType):
    """Module whose code runs when somebody reads an attribute that it lacks."""

    def __getattr__(self, name: str) -> Any:
        assert self.__spec__ is not None
        self.__spec__.loader_state.run(self)
        # The code may ask for an attribute that it has not set yet.
        return ModuleType.__getattribute__(self, name)

    def __dir__(self) -> list[str]:
        assert self.__spec__ is not None
        self.__spec__.loader_state.run(self)
        return list(ModuleType.__dir__(self))
