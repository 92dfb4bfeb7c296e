"""The one exception that means: what was given cannot be worked with, and here is what to do about it."""


class InputError(ValueError):
    """Raised where a setting, a file or an image is at fault. The message is one line; the command prints it alone."""


def choose(kind: str, name: str, available: list[str]) -> None:
    """Raise an `InputError` that lists what there is unless ``name`` is among it."""
    if name not in available:
        raise InputError(f"no {kind} {name!r}; there are: {', '.join(available)}")
