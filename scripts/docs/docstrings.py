"""Griffe extension that turns docstrings into Markdown: ``:class:`~a.b.C``` becomes ``C``."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|paramref):`(~?)\.?([\w.]+)`")
PAIR = re.compile(r"^    (\w+), (\w+): ", re.MULTILINE)
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


def markdown(text: str) -> str:
    """Convert Sphinx roles, pairs of names with one description, and ``Example:`` sections."""
    text = ROLE.sub(
        lambda found: f"`{found[2].rpartition('.')[2] if found[1] else found[2]}`", text
    )
    text = PAIR.sub(r"    \1: see `\2`.\n    \2: ", text)
    return EXAMPLE.sub(r"\1Examples:", text)


class Markdown(Extension):
    """Applies the conversion to every docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
