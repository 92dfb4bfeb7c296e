"""The exception for every mistake that a user can correct."""

import re
from collections.abc import Iterable

MAX_NAME_BYTES = 200
"""Longest name of a dataset or group; a file name has at most 255 bytes, some of them a suffix."""
CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
LONGEST = 1500
"""Number of characters of a message; names in it come from files and may be of any length."""


class InputError(ValueError):
    """Invalid setting, file or image; its message is one line, ``SETTING: problem; remedy``.

    Args:
        message: Text. Names in it may hold anything, see `one_line`.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Escape line ends and other control characters, and leave out the middle of a long text."""
    text = CONTROL_CHARACTERS.sub(lambda found: repr(found[0])[1:-1], text)
    return shortened(text, LONGEST)


def shortened(text: str, longest: int) -> str:
    """Return a text, without the middle if it has more characters than ``longest``."""
    if len(text) <= longest:
        return text
    end = longest // 3  # it has the remedy
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


def beginning(text: str, longest: int = 100) -> str:
    """Return a text in one line, without its end if it has more characters than ``longest``."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def choose(kind: str, name: str, available: Iterable[str]) -> None:
    """Raise an `InputError` that lists the known names unless ``name`` is one of them.

    Args:
        kind: What the name should be the name of, such as ``discrepancy``.
        name: The given name.
        available: The known names.
    """
    if name not in available:
        raise InputError(f"unknown {kind} {name!r}; choose from: {', '.join(available)}")


def checked_name(kind: str, name: object) -> str:
    """Return the name of a dataset or group as text, which folders and files can be called.

    Args:
        kind: What it is the name of, such as ``data.ood: the dataset name``.
        name: The given name.

    Raises:
        InputError: It is empty, too long, or has control characters.
    """
    text = str(name)
    size = len(text.encode(errors="replace"))
    if size > MAX_NAME_BYTES:
        raise InputError(
            f"{kind} {text[:40]!r}...: has {size} bytes, too long for the name of a file; shorten "
            f"it to at most {MAX_NAME_BYTES}"
        )
    if not text.strip() or not text.isprintable():
        raise InputError(f"{kind} {text!r}: must be printable text in one line; rename it")
    return text
