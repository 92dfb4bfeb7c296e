"""Table and plot of the classifier's accuracy by timestep, see :mod:`diffguard_pl.evaluation.noise_accuracy`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.noise_accuracy import Point

LOOKS = {
    "x_t": ("$x_t$", "o", "#9a9aa0"),
    "x_t_cutouts": ("$x_t$, cutouts", "s", "#c77d2e"),
    "x0hat": ("$\\hat{x}_0$", "^", "#3b7dbf"),
    "x0hat_cutouts": ("$\\hat{x}_0$, cutouts", "D", "#1b4f8a"),
}
"""Name, marker and colour of each variant in the plot."""


def write_noise_accuracy(points: Sequence["Point"], path: Path) -> None:
    """Write the points as CSV, one line a step."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "timestep", *LOOKS])
        for point in points:
            accuracies = [point.accuracy[variant] for variant in LOOKS]
            writer.writerow([point.step, point.timestep, *accuracies])


def draw_noise_accuracy(points: Sequence["Point"], dataset: str, path: Path) -> None:
    """Draw the points as PNG, one line a variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    timesteps = [point.timestep for point in points]
    for variant, (label, marker, colour) in LOOKS.items():
        percent = [100 * point.accuracy[variant] for point in points]
        axes.plot(timesteps, percent, marker=marker, markersize=4, color=colour, label=label)
    axes.set(
        xlabel="timestep",
        ylabel="accuracy in percent",
        ylim=(0, 102),
        title=f"Accuracy of the classifier on {dataset}, out of noise",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
