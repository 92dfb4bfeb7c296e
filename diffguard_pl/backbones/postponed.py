"""Postpones ``scipy.stats``, which takes as long to import as half of torch, until something uses it.

diffusers imports it for schedulers that are not used here. This module is imported before diffusers.
"""

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec


def postpone_import(name: str) -> None:
    """Register a module that is loaded when one of its attributes is first used."""
    if name in sys.modules:
        return
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        return
    spec.loader = LazyLoader(spec.loader)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


postpone_import("scipy.stats")
