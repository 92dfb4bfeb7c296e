"""Colours and line styles that tell the datasets of a plot apart."""

from typing import Any

COLOURS = ("#2b6cb0", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8d5fd3", "#7f7f7f")
"""Colour of the in-distribution dataset, then of the others.

They stay distinguishable to colour-blind readers, on light and on dark backgrounds.
"""
LINE_STYLES = ("-", "--", "-.", (0, (7, 2)))
"""Matplotlib line styles of datasets that share a colour."""


def colour_of(index: int) -> str:
    """Return the colour of the dataset (or run) at this position; colours repeat after eight."""
    return COLOURS[index % len(COLOURS)]


def line_style_of(index: int) -> Any:
    """Return the matplotlib line style of the dataset at this position."""
    return LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
