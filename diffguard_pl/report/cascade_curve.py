"""What a cascade would save: AUROC and FPR@95 against the share of images that go through the diffusion model."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..metrics.bootstrap import METRIC_NAMES, with_intervals
from ..metrics.table import Interval, ResultRow, ScoreTable, result_rows
from ..names import CALIBRATION
from ..runs.files import atomic_write
from ..runs.store import Header
from ..scores.combination import CASCADE, FUSION, Combination

BUDGETS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Point:
    """A cascade with one budget, as it did on the images of a run.

    Attributes:
        budget: share of in-distribution images that it means to diffuse.
        sent: share of all images that it diffused.
        of_sets: share of images that it diffused, by data set.
        rows: share of the diffusion model's rows that it took.
        figures: a row of the result table for each out-of-distribution set, and for the mean over each group of them.
    """

    budget: float
    sent: float
    of_sets: dict[str, float]
    nfe: float
    metrics: list[ResultRow]


def curve(frame: pd.DataFrame, header: Header) -> list[Point]:
    """From all lines of a run, the calibration set's among them; empty where it has no cascade, or one that skipped images.

    Sets count as they are: an in-distribution share of 95 % of the images, say, would have fewer of them diffused.
    """
    combination = Combination.of_header(header)
    if not combination.cascade or combination.cascade.skip or CALIBRATION not in header.datasets:
        return []
    scored = frame[frame["error"].isna()]
    is_calibration = (scored["dataset"] == CALIBRATION).to_numpy()
    reference, scores = (
        {name: part[name].to_numpy(float) for name in header.scores}
        for part in (scored[is_calibration], scored[~is_calibration])
    )
    if combination.fusion:
        fused = combination.fusion(reference, reference), combination.fusion(reference, scores)
        reference, scores = reference | {FUSION: fused[0]}, scores | {FUSION: fused[1]}
    cascades = [
        replace(combination.cascade, budget=budget)
        for budget in sorted({*BUDGETS, combination.cascade.budget})
    ]
    sent = [
        cascade.unsure(reference[cascade.baseline], scores[cascade.baseline])
        for cascade in cascades
    ]
    tested = scored[~is_calibration]
    datasets = [name for name in header.datasets if name != CALIBRATION]
    members = tested["dataset"].map({name: d for d, name in enumerate(datasets)}).to_numpy()
    names = [f"{CASCADE} {cascade.budget:g}" for cascade in cascades]
    values = np.stack([cascade(reference, scores) for cascade in cascades], axis=1)
    table = ScoreTable(
        names,
        datasets,
        {n: g for n, g in header.groups.items() if n != CALIBRATION},
        values,
        members,
    )
    figures = with_intervals(result_rows(table), table)
    rows = tested["nfe"].to_numpy(float)
    rows = (
        np.ones(len(rows)) if np.isnan(rows).any() else rows
    )  # not counted: every image costs the same
    return [
        Point(
            cascade.budget,
            float(of.mean()),
            {name: float(of[members == d].mean()) for d, name in enumerate(datasets)},
            float(rows[of].sum() / rows.sum()),
            [row for row in figures if row.score == name],
        )
        for cascade, of, name in zip(cascades, sent, names, strict=True)
    ]


def write_curve(points: list[Point], path: Path) -> None:
    """As CSV: a line for each budget and set, shares in [0, 1]."""
    ends = [f"{name}_{end}" for name in METRIC_NAMES for end in Interval._fields]
    with atomic_write(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["budget", "sent", "sent_of_ind", "nfe", "group", "dataset", *METRIC_NAMES, *ends]
        )
        for point in points:
            ind = next(iter(point.of_sets.values()))
            for row in point.metrics:
                of_row = [value for name in METRIC_NAMES for value in row.intervals[name]]
                figures = [getattr(row.metrics, name) for name in METRIC_NAMES]
                writer.writerow(
                    [
                        point.budget,
                        point.sent,
                        ind,
                        point.nfe,
                        row.group,
                        row.dataset,
                        *figures,
                        *of_row,
                    ]
                )


def draw_curve(points: list[Point], title: str, budget: float, path: Path) -> None:
    """As a PNG: AUROC and FPR@95 of every set against the share of images that is diffused, with 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from .style import look

    sets = [row.dataset for row in points[0].metrics if row.dataset != "mean"]
    sent = np.array([100 * point.sent for point in points])
    chosen = next(i for i, point in enumerate(points) if point.budget == budget)
    with pyplot.rc_context({"text.parse_math": False}):
        figure, both = pyplot.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
        for axes, name, what in zip(both, METRIC_NAMES, ("AUROC", "FPR@95"), strict=True):
            for d, dataset in enumerate(sets):
                rows = [
                    next(row for row in point.metrics if row.dataset == dataset) for point in points
                ]
                colour, line = look(d + 1)
                values = np.array([100 * getattr(row.metrics, name) for row in rows])
                low, high = (
                    np.array([100 * row.intervals[name][end] for row in rows]) for end in (0, 1)
                )
                axes.fill_between(sent, low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot(
                    sent,
                    values,
                    color=colour,
                    linestyle=line,
                    marker="o",
                    markersize=3,
                    label=dataset,
                )
            axes.axvline(sent[chosen], color="#999999", linewidth=0.8, linestyle=":")
            axes.set(
                xlabel="percent of all images that are diffused",
                ylabel=f"{what} in percent",
                xlim=(-2, 102),
            )
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        both[0].legend(frameon=False, fontsize=8)
        figure.suptitle(f"{title}; dotted: budget {budget:g}", fontsize=11)
        with atomic_write(path) as unfinished:
            figure.savefig(unfinished, dpi=150, format="png")
        pyplot.close(figure)
