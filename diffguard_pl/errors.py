"""The exception for every mistake that a user can correct."""

from collections.abc import Iterable


class InputError(ValueError):
    """Invalid setting, file or image; its message is one line, ``SETTING: problem; remedy``."""


def choose(kind: str, name: str, available: Iterable[str]) -> None:
    """Raise an `InputError` that lists the known names unless ``name`` is one of them.

    Args:
        kind: What the name should be the name of, such as ``discrepancy``.
        name: The given name.
        available: The known names.
    """
    if name not in available:
        raise InputError(f"unknown {kind} {name!r}; choose from: {', '.join(available)}")
