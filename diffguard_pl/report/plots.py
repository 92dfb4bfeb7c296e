"""Plots of a run as PNG files: ROC curves and histograms, costs, and the curve of a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..metrics.bootstrap import METRIC_NAMES
from ..metrics.table import ScoreTable
from .cascade_curve import CascadePoint
from .costs import PATH, ScoreCost
from .curves import histograms, roc
from .figure import saved_figure, simplify
from .style import COLOURS, colour_of, line_style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_COLUMNS = 5
NAME_PLACES = [(x, y) for y in (3, -8, -16, 11, -24, 19, -32, -40, -48) for x in (4, -4)]
"""Places of a name from its point, in points of print, the best one first."""
POINT_RADIUS = 4.0
"""Radius of a point in the costs' plot, in pixels."""
LONGEST_NAME = 30
"""Characters of a dataset's name that fit into a column of the legend."""


def draw_plots(table: ScoreTable, title: str, path: Path) -> None:
    """Draw ROC curves and histograms of the primary score, beside the ROC curves of MSP, as a PNG.

    Args:
        table: Scores of all images.
        title: Title of the figure.
        path: Path of the PNG.

    Raises:
        InputError: The file could not be written.
    """
    legend_lines = -(-len(table.datasets) // LEGEND_COLUMNS)
    with saved_figure(title, path, height=4.4 + 0.19 * legend_lines) as figure:
        left, right = figure.subplots(1, 2)
        _draw_roc_curves(left, table)
        _draw_histograms(right, table)
        for axes in (left, right):
            simplify(axes)
        _add_legend(figure, table)


def draw_cascade_curve(
    points: Sequence[CascadePoint], title: str, budget: float, path: Path
) -> None:
    """Draw AUROC and FPR@95 against the fraction of diffused images, with 95 % intervals, as a PNG.

    Args:
        points: Results at each budget.
        title: Title of the figure.
        budget: Budget of the run, marked by a dotted line.
        path: Path of the PNG.

    Raises:
        InputError: The file could not be written.
    """
    datasets = [result.dataset for result in points[0].results if not result.is_mean]
    diffused = np.array([100 * point.diffused for point in points])
    chosen = next(i for i, point in enumerate(points) if point.budget == budget)
    with saved_figure(f"{title}; dotted: budget {budget:g}", path, height=4.4) as figure:
        both = figure.subplots(1, 2)
        for axes, metric, label in zip(both, METRIC_NAMES, ("AUROC", "FPR@95"), strict=True):
            for number, dataset in enumerate(datasets, 1):
                values, low, high = _metric_over_points(points, dataset, metric)
                colour = colour_of(number)
                axes.fill_between(diffused, low, high, color=colour, alpha=0.15, linewidth=0)
                line = {"color": colour, "linestyle": line_style_of(number), "label": dataset}
                axes.plot(diffused, values, marker="o", markersize=3, **line)
            axes.axvline(diffused[chosen], color="#999999", linewidth=0.8, linestyle=":")
            axes.set(xlabel="images diffused (%)", ylabel=f"{label} (%)", xlim=(-2, 102))
            simplify(axes)
        both[0].legend(frameon=False, fontsize=8)


def draw_costs(costs: Sequence[ScoreCost], title: str, path: Path) -> None:
    """Draw AUROC against network evaluations, with the best scores for each cost, as a PNG.

    Args:
        costs: Costs of the scores, the cheapest first.
        title: Title of the figure.
        path: Path of the PNG.

    Raises:
        InputError: The file could not be written.
    """
    groups = list(costs[0].results)
    families = list(dict.fromkeys(cost.family for cost in costs))
    with saved_figure(title, path, height=4.6) as figure:
        for axes, group in zip(
            figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True
        ):
            for number, family in enumerate(families):
                of_family = [cost for cost in costs if cost.family == family]
                axes.scatter(
                    [cost.nfe for cost in of_family],
                    [100 * cost.results[group].metrics.auroc for cost in of_family],
                    color=colour_of(number),
                    s=18,
                    label=family,
                    zorder=4,  # above the white around names
                )

            # The front: the best score up to each number of evaluations.
            front = [
                (cost.nfe, 100 * cost.results[group].metrics.auroc)
                for cost in costs
                if group in cost.best
            ]
            front.append((max(cost.nfe for cost in costs), front[-1][1]))
            axes.step(*zip(*front, strict=True), where="post", color="#999999", linewidth=0.8)

            axes.set_xscale("symlog", linthresh=1, linscale=0.3)
            ticks = [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000]
            highest = max(cost.nfe for cost in costs)
            axes.set_xticks([tick for tick in ticks if tick <= 3 * highest])
            axes.xaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.set_xlim(-0.2, 2 * highest)
            axes.set(xlabel="network evaluations per image", ylabel=f"AUROC, {group} (%)")
            simplify(axes)
        figure.axes[0].legend(frameon=False, fontsize=8)
        figure.draw_without_rendering()  # places of points and sizes of texts are known now
        for axes, group in zip(figure.axes, groups, strict=True):
            _name_points(axes, costs, group)


def _name_points(axes: Axes, costs: Sequence[ScoreCost], group: str) -> None:
    """Write names beside points, none on another name or, if there is room, on a point.

    Baselines stand above each other, and so do discrepancies: only their best are named.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    auroc = {cost.score: cost.results[group].metrics.auroc for cost in costs}
    # Of equals, the cheapest comes last.
    by_auroc = sorted(reversed(costs), key=lambda cost: auroc[cost.score])
    highest = {cost.family: cost.score for cost in by_auroc}.values()
    points = axes.transData.transform([(cost.nfe, 100 * auroc[cost.score]) for cost in costs])
    taken = [Bbox.from_extents(x, y, x, y).padded(POINT_RADIUS) for x, y in points]
    for cost in costs:
        if cost.family != PATH and group not in cost.best and cost.score not in highest:
            continue
        name = axes.annotate(
            cost.score,
            (cost.nfe, 100 * auroc[cost.score]),
            xytext=NAME_PLACES[0],
            textcoords="offset points",
            fontsize=7,
            fontweight="bold" if group in cost.best else "normal",
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
        for place in NAME_PLACES:
            name.set_position(place)
            name.set_horizontalalignment("left" if place[0] > 0 else "right")
            box = name.get_window_extent().padded(1)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _metric_over_points(
    points: Sequence[CascadePoint], dataset: str, metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a metric and the ends of its interval at each point, in percent."""
    values = []
    for point in points:
        result = next(result for result in point.results if result.dataset == dataset)
        values.append((getattr(result.metrics, metric), *result.intervals[metric]))
    middle, low, high = 100 * np.array(values).T
    return middle, low, high


def _draw_roc_curves(axes: Axes, table: ScoreTable) -> None:
    """Draw a solid curve of the primary score and a dotted one of MSP for each dataset."""
    msp = table.scores.index("msp") if "msp" in table.scores[1:] else None
    ind = table.of(0)
    for number in table.ood:
        ood = table.of(number)
        if len(ood) == 0:
            continue
        colour = colour_of(number)
        axes.plot(*roc(ind[:, 0], ood[:, 0]), color=colour, linestyle=line_style_of(number))
        if msp is not None:
            axes.plot(*roc(ind[:, msp], ood[:, msp]), color=colour, linewidth=1, linestyle=":")
    # The diagonal is the curve of a score that tells nothing.
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
    note = "" if msp is None else "; dotted: MSP"
    axes.set(
        xlabel=f"fraction of out-of-distribution images accepted{note}",
        ylabel=f"fraction of {table.datasets[0]} accepted",
    )


def _draw_histograms(axes: Axes, table: ScoreTable) -> None:
    """Draw the histogram of the primary score for each dataset."""
    edges, fractions = histograms(table, 0)
    centres = (edges[1:] + edges[:-1]) / 2
    # With many datasets only the outlines are distinguishable.
    shade = 0.35 if len(table.datasets) <= len(COLOURS) else 0.06
    for number, of_dataset in enumerate(fractions):
        if len(table.of(number)) == 0:
            continue
        colour, line_style = colour_of(number), line_style_of(number)
        percent = 100 * of_dataset
        axes.fill_between(centres, percent, step="mid", color=colour, alpha=shade, linewidth=0)
        axes.step(centres, percent, where="mid", color=colour, linestyle=line_style, linewidth=1)
    axes.set(
        xlabel=f"{table.scores[0]} (higher = more in-distribution)",
        ylabel="images of the dataset (%)",
    )


def _add_legend(figure: Figure, table: ScoreTable) -> None:
    """Add a legend below both plots, where any number of datasets has room."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    names = []
    for number, name in enumerate(table.datasets):
        if len(table.of(number)):
            style = {"color": colour_of(number), "linestyle": line_style_of(number)}
            handles.append(Line2D([], [], **style))
            names.append(_legend_name(name))
    options = {"ncols": LEGEND_COLUMNS, "frameon": False, "fontsize": 8, "handlelength": 3}
    figure.legend(handles, names, loc="outside lower center", **options)


def _legend_name(name: str) -> str:
    """Shorten a name to its column; matplotlib would hide a name with a leading underscore."""
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return f" {short}" if short.startswith("_") else short
