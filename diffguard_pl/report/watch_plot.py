"""Picture of a stream of decisions: the share that rejects, and the test martingale."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .figure import saved_figure, simplify
from .style import COLOURS


class Part(Protocol):
    """Successive decisions and the share that rejects, with its interval."""

    @property
    def first(self) -> int: ...
    @property
    def decisions(self) -> int: ...
    @property
    def share(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def draw_watch(
    windows: Sequence[Part],
    expected: float | None,
    martingale: np.ndarray,
    alarm_at: float,
    alarm: int | None,
    path: Path,
) -> None:
    """Draw the share of rejected images over time, and the martingale below it, as a PNG.

    Args:
        windows: Parts of the stream.
        expected: Share of in-distribution images that is rejected at most; None if unknown.
        martingale: Its base-10 logarithm after each decision.
        alarm_at: Height at which it raises an alarm.
        alarm: Number of the decision at which it did; None if it did not.
        path: Path of the PNG.

    Raises:
        InputError: The file could not be written.
    """
    with saved_figure("decisions over time", path, height=5.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        middle = [part.first + part.decisions / 2 for part in windows]
        share = np.array([100 * part.share for part in windows])
        low = share - [100 * part.low for part in windows]
        high = np.array([100 * part.high for part in windows]) - share
        upper.errorbar(
            middle, share, yerr=[low, high], fmt="o", markersize=3, color=COLOURS[0], linewidth=1
        )
        if expected is not None:
            upper.axhline(100 * expected, color="#999999", linewidth=0.8, linestyle=":")
        upper.set(ylabel="rejected (%), 95 % interval", ylim=(0, None))

        lower.plot(np.arange(1, len(martingale) + 1), martingale, color=COLOURS[1], linewidth=1)
        lower.axhline(alarm_at, color="#999999", linewidth=0.8, linestyle=":")
        if alarm is not None:
            lower.axvline(alarm + 1, color=COLOURS[3], linewidth=1)
        lower.set(xlabel="decision", ylabel="martingale (log10)")
        for axes in (upper, lower):
            simplify(axes)
