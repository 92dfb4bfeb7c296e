"""Results of several runs against the settings in which they differ (paper, Fig. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..errors import InputError
from ..metrics.bootstrap import METRIC_NAMES
from ..metrics.table import Interval, ResultRow
from ..names import MEAN
from ..runs.changed_settings import plain_name
from ..runs.csv_files import write_csv
from ..runs.record import score_settings
from .figure import saved_figure, simplify
from .results import RunResults
from .style import colour_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class CurvePoint:
    """One run on the curve.

    Attributes:
        settings: Value of each setting in which the runs differ.
        run: The run.
        results: Result of the primary score on each dataset, and on their average if there are
            several.
    """

    settings: dict[str, float]
    run: RunResults
    results: list[ResultRow]

    @property
    def average(self) -> ResultRow:
        """Result to draw: the average, or that of the only dataset."""
        return self.results[-1]


def setting_curve(runs: Sequence[RunResults], names: Sequence[str]) -> list[CurvePoint]:
    """Arrange runs by the settings in which they differ.

    Args:
        runs: Runs that differ in these settings alone.
        names: Dotted names of the settings, such as ``model.guidance.cam_cut``; all of their values
            are numbers. The first is the horizontal axis, the others tell curves apart.

    Returns:
        Points in the order of the curves, and on each of them from left to right.

    Raises:
        InputError: The runs differ in something else, or a setting is unknown, not a number, or
            the same in two runs.
    """
    _check_alike(runs, names)
    points = []
    for run in runs:
        settings = {name: _number(run, name) for name in names}
        points.append(CurvePoint(settings, run, _results(run)))
    points.sort(key=lambda point: [*list(point.settings.values())[1:], point.settings[names[0]]])
    for a, b in pairwise(points):
        if a.settings == b.settings:
            raise InputError(
                f"{b.run.folder}: has the same {' and '.join(names)} as {a.run.folder}; leave one "
                "of them out"
            )
    return points


def curve_table(points: Sequence[CurvePoint]) -> Table:
    """Build the table: AUROC in percent for each point and dataset."""
    first = points[0]
    table = Table(
        title=Text(f"AUROC of {first.results[0].score} against {first.run.ind}", "table.title"),
        caption=Text("in percent, the last column with 95 % intervals", "table.caption"),
    )
    for name in [*map(short, first.settings), *(result.dataset for result in first.results)]:
        table.add_column(name, justify="right", overflow="fold")
    for point in points:
        cells = [f"{value:g}" for value in point.settings.values()]
        cells += [f"{100 * result.metrics.auroc:.2f}" for result in point.results]
        low, high = point.average.intervals["auroc"]
        cells[-1] += f" [{100 * low:.1f}, {100 * high:.1f}]"
        table.add_row(*cells)
    return table


def write_curve_csv(points: Sequence[CurvePoint], path: Path) -> None:
    """Write one line per run and dataset, fractions in [0, 1].

    Raises:
        InputError: The file could not be written.
    """
    ends = [f"_{end}" for end in Interval._fields]
    columns = [f"{metric}{part}" for metric in METRIC_NAMES for part in ("", *ends)]
    lines = []
    for point in points:
        for result in point.results:
            line: list[Any] = [*point.settings.values(), result.dataset, result.score]
            for metric in METRIC_NAMES:
                line += [getattr(result.metrics, metric), *result.intervals[metric]]
            lines.append([*line, point.run.folder.resolve()])
    write_csv([*points[0].settings, "dataset", "score", *columns, "folder"], lines, path)


def draw_curve(points: Sequence[CurvePoint], path: Path) -> None:
    """Draw the average AUROC against the first setting, with 95 % intervals, as a PNG.

    Raises:
        InputError: The file could not be written.
    """
    first = points[0]
    curves: dict[str, list[CurvePoint]] = {}
    for point in points:
        others = list(point.settings.items())[1:]
        name = ", ".join(f"{short(name)} {value:g}" for name, value in others)
        curves.setdefault(name, []).append(point)
    title = f"{first.results[0].score} against {first.run.ind}, with 95 % intervals"
    with saved_figure(title, path, height=4.4, width=6.5) as figure:
        axes = figure.subplots()
        for number, (name, of_curve) in enumerate(curves.items()):
            _draw_line(axes, of_curve, colour_of(number), name)
        axes.set(xlabel=next(iter(first.settings)), ylabel=f"AUROC, {first.average.dataset} (%)")
        simplify(axes)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)


def short(name: str) -> str:
    """Return the last part of a setting's name."""
    return name.rpartition(".")[2]


def _draw_line(axes: Axes, points: Sequence[CurvePoint], colour: str, name: str) -> None:
    x = [next(iter(point.settings.values())) for point in points]
    middle = [100 * point.average.metrics.auroc for point in points]
    low = [100 * point.average.intervals["auroc"].low for point in points]
    high = [100 * point.average.intervals["auroc"].high for point in points]
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, middle, marker="o", markersize=4, color=colour, label=name)


def _results(run: RunResults) -> list[ResultRow]:
    """Return the primary score's result on each dataset, and on the average of several."""
    results = [row for row in run.results if row.score == run.primary_score]
    return [row for row in results if row.dataset != MEAN and not row.is_full_spectrum]


def _settings(run: RunResults) -> dict[str, Any]:
    """Return the settings that the run's scores depend on, by dotted name as on a command line."""
    config = run.record.get("config")
    if not isinstance(config, dict):
        raise InputError(f"{run.folder}: has no settings in its run.json; leave it out")
    return {plain_name(name): value for name, value in score_settings(config).items()}


def _number(run: RunResults, name: str) -> float:
    settings = _settings(run)
    value = settings.get(name)
    if name not in settings or isinstance(value, bool) or not isinstance(value, int | float):
        found = f"is {value}" if name in settings else "is unknown"
        raise InputError(f"{run.folder}: {name} {found}; choose a setting that is a number")
    return value


def _check_alike(runs: Sequence[RunResults], names: Sequence[str]) -> None:
    """Raise an `InputError` unless the runs differ in these settings alone."""
    first = runs[0]
    of_first = _settings(first)
    for run in runs[1:]:
        if run.header.datasets != first.header.datasets or run.primary_score != first.primary_score:
            raise InputError(
                f"{run.folder}: has other datasets or another primary score than {first.folder}; "
                "leave it out"
            )
        settings = _settings(run)
        for name in sorted((of_first.keys() | settings.keys()) - set(names)):
            if of_first.get(name) != settings.get(name):
                raise InputError(
                    f"{run.folder}: differs from {first.folder} in {name}, too; add it to the "
                    "settings, or leave the run out"
                )
