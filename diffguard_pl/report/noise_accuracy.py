"""Table and plot of the classifier's accuracy on noisy images, by timestep.

:mod:`diffguard_pl.evaluation.noise_accuracy` computes it.
"""

from collections.abc import Sequence
from pathlib import Path

from ..metrics.noise_accuracy import NoiseAccuracy
from ..runs.csv_files import write_csv
from ..runs.files import atomic_write

STYLES = {
    "x_t": ("$x_t$", "o", "#9a9aa0"),
    "x_t_cutouts": ("$x_t$, cutouts", "s", "#c77d2e"),
    "x0hat": ("$\\hat{x}_0$", "^", "#3b7dbf"),
    "x0hat_cutouts": ("$\\hat{x}_0$, cutouts", "D", "#1b4f8a"),
}
"""Name, marker and colour of each variant in the plot."""


def write_noise_accuracy(points: Sequence[NoiseAccuracy], path: Path) -> None:
    """Write the accuracies as CSV, one line per step, fractions in [0, 1].

    Raises:
        InputError: The file could not be written.
    """
    lines = []
    for point in points:
        accuracies = [point.accuracy[variant] for variant in STYLES]
        lines.append([point.step, point.timestep, *accuracies])
    write_csv(["step", "timestep", *STYLES], lines, path)


def draw_noise_accuracy(points: Sequence[NoiseAccuracy], dataset: str, path: Path) -> None:
    """Draw the accuracies as a PNG, one line per variant.

    Raises:
        InputError: The file could not be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    timesteps = [point.timestep for point in points]
    for variant, (label, marker, colour) in STYLES.items():
        percent = [100 * point.accuracy[variant] for point in points]
        axes.plot(timesteps, percent, marker=marker, markersize=4, color=colour, label=label)
    axes.set(
        xlabel="timestep",
        ylabel="accuracy (%)",
        ylim=(0, 102),
        title=f"Classifier accuracy on noisy images of {dataset}",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")
