"""Figures as PNG files, drawn without pyplot, whose import and global state no report needs."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..runs.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextmanager
def saved_figure(title: str, path: Path, height: float, width: float = 10.5) -> Iterator[Figure]:
    """Yield an empty figure, and write it as a PNG at the end.

    Args:
        title: Title of the figure.
        path: Path of the PNG.
        height: Height in inches.
        width: Width in inches. Defaults to 10.5.

    Raises:
        InputError: The file could not be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # A dollar sign in a dataset's name is not the beginning of a formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.suptitle(title, fontsize=11)
        with atomic_write(path) as unfinished:
            figure.savefig(unfinished, dpi=150, format="png")


def simplify(axes: Axes) -> None:
    """Leave of the frame the two axes, and add a faint grid."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
