"""Import of a user's own discrepancy or baseline, named by its import path in a setting."""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any

from ..errors import InputError


def import_object(setting: str, path: str) -> Any:
    """Import ``package.module.name``.

    Args:
        setting: Name of the setting that holds the path, for messages.
        path: Import path.

    Raises:
        InputError: The module or the name in it is not found, or importing it fails.
    """
    where, _, name = path.rpartition(".")
    try:
        module = import_module(where)
    except ModuleNotFoundError as error:
        # Not found is the module of the path itself, or one that it imports.
        if error.name is not None and f"{where}.".startswith(f"{error.name}."):
            raise InputError(
                f"{setting}: {path}: module {error.name!r} not found; install it, or start "
                "`python -m` from the folder that contains it"
            ) from error
        raise InputError(f"{setting}: {path}: cannot import {where} ({error})") from error
    except Exception as error:  # whatever the module's code raises
        reason = " ".join(str(error).split())
        raise InputError(
            f"{setting}: {path}: cannot import {where} ({type(error).__name__}: {reason})"
        ) from error
    if not hasattr(module, name):
        origin = {
            key: str(getattr(value, "__module__", None))
            for key, value in vars(module).items()
            if callable(value)
        }
        defined = [key for key, of in origin.items() if of == where]
        if not defined:  # a package lists what its modules define
            defined = [key for key, of in origin.items() if of.startswith(f"{where}.")]
        raise InputError(
            f"{setting}: {path}: unknown name {name!r} in {where}; choose from: "
            f"{', '.join(defined) or 'nothing, it defines no functions'}"
        )
    found: Any = getattr(module, name)
    if not callable(found):
        raise InputError(
            f"{setting}: {path} must be a function or a class, not of type {type(found).__name__}"
        )
    return found


def accepts(function: Callable[..., Any], count: int) -> bool:
    """Return whether a function can be called with ``count`` positional arguments."""
    try:
        signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # the signature of a builtin is unknown
        return True
    return True
