"""TODO."""

from typing import Any

COLOURS = ("#2b6cb0", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8d5fd3", "#7f7f7f")
"""Of the in-distribution set, then of the others; told apart by the colour-blind, seen on light and on dark."""
LINES = ("-", "--", "-.", (0, (7, 2)))
"""Of sets that share a colour."""


def look(dataset: int) -> tuple[str, Any]:
    """Colour and line of a set."""
    return COLOURS[dataset % len(COLOURS)], LINES[dataset // len(COLOURS) % len(LINES)]
