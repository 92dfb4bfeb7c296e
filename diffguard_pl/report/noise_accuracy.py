"""Tables and plots of the classifier's accuracy on noisy images, by timestep.

:mod:`diffguard_pl.evaluation.noise_accuracy` computes them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics.noise_accuracy import AGREEMENTS, NoiseAccuracy
from ..runs.csv_files import write_csv
from .figure import saved_figure, simplify

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

STATES = {"x_t": "noisy image $x_t$", "x0hat": "predicted image $\\hat{x}_0$"}
"""Title of the panel of each state."""
STYLES = {
    "": ("whole image", "o", "-", "#2b6cb0"),
    "_cutouts_mean": ("cutouts, mean", "s", "-", "#d55e00"),
    "_cutouts_majority": ("cutouts, majority", "^", "--", "#b8860b"),
    "_cutouts_maximum": ("cutouts, maximum", "v", ":", "#cc79a7"),
    "_cutouts_any": ("any of the cutouts", "D", "-.", "#009e73"),
    "_noisy_classifier": ("noisy classifier", "x", "-", "#4a4a4f"),
}
"""Name, marker, line style and colour of each variant, by what follows the state in its name."""
AGREEMENT_STYLES = {
    "both_correct": ("both correct", "#2b6cb0"),
    "same_error": ("same wrong class", "#b8860b"),
    "disagree": ("different classes", "#d55e00"),
}
"""Name and colour of each agreement."""


def write_noise_accuracy(points: Sequence[NoiseAccuracy], path: Path) -> None:
    """Write the accuracies as CSV, one line per step, fractions in [0, 1].

    Raises:
        InputError: The file could not be written.
    """
    lines = [[point.step, point.timestep, *point.accuracy.values()] for point in points]
    write_csv(["step", "timestep", *points[0].accuracy], lines, path)


def draw_noise_accuracy(points: Sequence[NoiseAccuracy], dataset: str, path: Path) -> None:
    """Draw the accuracies as a PNG: a panel for x_t and one for x0hat, one line per variant.

    Raises:
        InputError: The file could not be written.
    """
    timesteps = [point.timestep for point in points]
    title = f"Classifier accuracy on noisy images of {dataset}"
    with saved_figure(title, path, height=4.4, width=9) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (state, title_of_state) in zip(panels, STATES.items(), strict=True):
            for suffix, (label, marker, line, colour) in STYLES.items():
                variant = f"{state}{suffix}"
                if variant not in points[0].accuracy:
                    continue
                percent = [100 * point.accuracy[variant] for point in points]
                style: dict[str, Any] = {"marker": marker, "linestyle": line, "color": colour}
                axes.plot(timesteps, percent, markersize=4, label=label, **style)
            axes.set(xlabel="timestep", ylim=(0, 102))
            axes.set_title(title_of_state, parse_math=True)
            simplify(axes)
        panels[0].set_ylabel("accuracy (%)")
        _add_legend_below(figure, panels[0])


# ---- agreement with a classifier of noisy images


def agreement_table(points: Sequence[NoiseAccuracy], dataset: str) -> "Table":
    """Return the agreement of the two classifiers as a table, in percent."""
    from rich.table import Table

    names = [name for name, _ in AGREEMENT_STYLES.values()]
    table = Table("step", "timestep", *names, title=f"Noisy and normal classifier, {dataset} (%)")
    for point in points:
        fractions = [f"{100 * point.agreement[name]:.1f}" for name in AGREEMENT_STYLES]
        table.add_row(str(point.step), str(point.timestep), *fractions)
    return table


def write_agreement(points: Sequence[NoiseAccuracy], path: Path) -> None:
    """Write the agreement as CSV, one line per step, fractions in [0, 1] that add up to 1.

    Raises:
        InputError: The file could not be written.
    """
    lines = []
    for point in points:
        fractions = [point.agreement[name] for name in AGREEMENTS]
        lines.append([point.step, point.timestep, *fractions])
    write_csv(["step", "timestep", *AGREEMENTS], lines, path)


def draw_agreement(points: Sequence[NoiseAccuracy], dataset: str, path: Path) -> None:
    """Draw the agreement as a PNG, one bar per step; the first is that of clean images (Fig. 2A).

    Raises:
        InputError: The file could not be written.
    """
    labels = ["clean", *(str(point.timestep) for point in points[1:])]
    bottom = [0.0] * len(points)
    title = f"Noisy and normal classifier on images of {dataset}"
    with saved_figure(title, path, height=4.4, width=7) as figure:
        axes = figure.subplots()
        for name, (label, colour) in AGREEMENT_STYLES.items():
            percent = [100 * point.agreement[name] for point in points]
            axes.bar(labels, percent, bottom=bottom, width=0.7, color=colour, label=label)
            bottom = [below + height for below, height in zip(bottom, percent, strict=True)]
        axes.set(xlabel="timestep", ylabel="images (%)", ylim=(0, 100))
        simplify(axes)
        axes.set_axisbelow(True)
        _add_legend_below(figure, axes)


def _add_legend_below(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
