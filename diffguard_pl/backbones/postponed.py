"""Postpones ``scipy.stats``, which takes half as long to import as torch, until something uses it.

diffusers imports it for schedulers that are not used here. This module is imported first.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class PostponedModule(ModuleType):
    """Stand-in in ``sys.modules`` that imports the real module when an attribute is used.

    importlib's LazyLoader does not serve: :mod:`inspect` asks every module for its ``__file__``,
    which would load it.
    """

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def postpone_import(name: str) -> None:
    """Register a stand-in for a module that has not been imported yet."""
    if name in sys.modules:
        return
    spec = find_spec(name)
    if spec is None:
        return
    module = PostponedModule(name)
    module.__file__ = spec.origin
    sys.modules[name] = module


postpone_import("scipy.stats")
