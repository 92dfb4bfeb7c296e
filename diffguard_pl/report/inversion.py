"""Table, CSV and plot of the similarity along the inversion (paper, Fig. 4).

:mod:`diffguard_pl.evaluation.inversion` computes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ..metrics.inversion import InversionPoint
from ..runs.csv_files import write_csv
from .figure import saved_figure, simplify
from .style import colour_of, line_style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 6
"""Steps that the table shows at most; the CSV has all."""
AXIS_LABELS = {"psnr": "PSNR (dB, peak 255)", "dists": "1 - DISTS", "lpips": "1 - LPIPS"}
PEAK_OF_UNIT_IMAGES = 20 * math.log10(255 / 2)
"""By how many dB the PSNR of early stop exceeds that of images in [0, 1]."""


def inversion_table(points: Sequence[InversionPoint]) -> Table:
    """Build the table: mean and standard deviation at some steps, for each dataset."""
    last = max(point.step for point in points)
    shown = sorted({round(i * last / (COLUMNS - 1)) for i in range(COLUMNS)})
    table = Table(
        title=Text("Similarity to the input along the inversion", "table.title"),
        caption=Text("mean and standard deviation over the images of a dataset", "table.caption"),
    )
    table.add_column("similarity")
    table.add_column("dataset", overflow="fold")
    for step in shown:
        table.add_column(f"step {step}", justify="right")
    for name in points[0].mean:
        table.add_section()
        digits = 1 if name == "psnr" else 2
        for dataset, of_dataset in by_dataset(points).items():
            cells = []
            for point in of_dataset:
                if point.step in shown:
                    mean, std = point.mean[name], point.std[name]
                    cells.append(f"{mean:.{digits}f} ± {std:.{digits}f}")
            table.add_row(Text(name), Text(dataset), *cells)
    return table


def write_inversion_csv(points: Sequence[InversionPoint], path: Path) -> None:
    """Write one line per dataset and step.

    Raises:
        InputError: The file could not be written.
    """
    names = list(points[0].mean)
    columns = [f"{name}_{moment}" for name in names for moment in ("mean", "std")]
    lines = []
    for point in points:
        values = [moment[name] for name in names for moment in (point.mean, point.std)]
        lines.append([point.dataset, point.step, point.timestep, point.images, *values])
    write_csv(["dataset", "step", "timestep", "images", *columns], lines, path)


def draw_inversion(
    points: Sequence[InversionPoint], thresholds: Mapping[str, float], title: str, path: Path
) -> None:
    """Draw the mean of each dataset with a band of one standard deviation, as a PNG.

    Args:
        points: The points of all datasets and steps.
        thresholds: Thresholds of early stop by name of the similarity, dotted lines in the plot.
        title: Title of the figure.
        path: Path of the PNG.

    Raises:
        InputError: The file could not be written.
    """
    names = list(points[0].mean)
    with saved_figure(title, path, height=4.6, width=1.5 + 5 * len(names)) as figure:
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            _draw_curves(axes, points, name)
            axes.set(xlabel="inversion step", ylabel=AXIS_LABELS.get(name, name))
            simplify(axes)
            if name == "psnr":
                _add_unit_axis(axes)
            if name in thresholds:
                line = {"color": "#666666", "linewidth": 0.9, "linestyle": ":"}
                label = f"early_stop.{name}: {thresholds[name]:g}"
                axes.axhline(thresholds[name], label=label, **line)
            axes.legend(frameon=False, fontsize=8)


def by_dataset(points: Sequence[InversionPoint]) -> dict[str, list[InversionPoint]]:
    """Return the points of each dataset in the order of their steps, without empty datasets."""
    found: dict[str, list[InversionPoint]] = {}
    for point in sorted(points, key=lambda point: point.step):
        if point.images:
            found.setdefault(point.dataset, []).append(point)
    order = dict.fromkeys(point.dataset for point in points)
    return {dataset: found[dataset] for dataset in order if dataset in found}


def _draw_curves(axes: Axes, points: Sequence[InversionPoint], name: str) -> None:
    for number, (dataset, of_dataset) in enumerate(by_dataset(points).items()):
        steps = [point.step for point in of_dataset]
        middle = [point.mean[name] for point in of_dataset]
        low = [point.mean[name] - point.std[name] for point in of_dataset]
        high = [point.mean[name] + point.std[name] for point in of_dataset]
        colour = colour_of(number)
        axes.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)
        label = f" {dataset}" if dataset.startswith("_") else dataset
        axes.plot(steps, middle, color=colour, linestyle=line_style_of(number), label=label)


def _add_unit_axis(axes: Axes) -> None:
    """Add an axis on the right with the paper's scale, the PSNR of images in [0, 1]."""
    conversion = (lambda y: y - PEAK_OF_UNIT_IMAGES, lambda y: y + PEAK_OF_UNIT_IMAGES)
    right = axes.secondary_yaxis("right", functions=conversion)
    right.set_ylabel("PSNR of images in [0, 1] (dB)")
