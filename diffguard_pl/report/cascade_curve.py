"""Cascades at other budgets: AUROC and FPR@95 against the fraction of images that are diffused."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..metrics.bootstrap import with_intervals
from ..metrics.table import ResultRow, ScoreTable, result_rows
from ..names import CALIBRATION, CASCADE, FUSION
from ..runs.store import Header
from ..scores.combination import Combination

if TYPE_CHECKING:
    import pandas as pd

BUDGETS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class CascadePoint:
    """Results of a cascade with one budget on the images of a run; all fractions in [0, 1].

    Attributes:
        budget: Fraction of in-distribution images that the cascade aims to diffuse.
        diffused: Fraction of all test images that it diffused.
        diffused_by_dataset: Fraction of images that it diffused by dataset, in-distribution first.
        nfe: Network evaluations that it spent, as a fraction of diffusing every image.
        results: Results on each out-of-distribution dataset, and means over datasets, without
            full-spectrum ones.
    """

    budget: float
    diffused: float
    diffused_by_dataset: dict[str, float]
    nfe: float
    results: list[ResultRow]

    @property
    def diffused_ind(self) -> float:
        """Fraction of in-distribution images that it diffused."""
        return next(iter(self.diffused_by_dataset.values()))


def cascade_curve(frame: "pd.DataFrame", header: Header) -> list[CascadePoint]:
    """Evaluate a run's cascade at other budgets.

    The fractions depend on the mix of datasets in the run: the larger the fraction of
    in-distribution images, the fewer images are diffused.

    Args:
        frame: All lines of the run, calibration images included.
        header: Header of the run.

    Returns:
        Points by ascending budget; empty if the run has no cascade, or one that skipped images.
    """
    combination = Combination.from_settings(header.combination)
    cascade = combination.cascade
    if cascade is None or cascade.skip or CALIBRATION not in header.datasets:
        return []

    # Validation images define the scale that all scores share (ranks or z-scores).
    scored = frame[frame["error"].isna()]
    is_calibration = scored["dataset"] == CALIBRATION
    calibration, tested = scored[is_calibration], scored[~is_calibration]
    reference = {name: calibration[name].to_numpy(float) for name in header.scores}
    scores = {name: tested[name].to_numpy(float) for name in header.scores}
    if combination.fusion:
        fused_reference = combination.fusion(reference, reference)
        scores[FUSION] = combination.fusion(reference, scores)
        reference[FUSION] = fused_reference

    # Evaluate the same images at each budget; the run's budget is one of the points.
    budgets = sorted({*BUDGETS, cascade.budget})
    cascades = [replace(cascade, budget=budget) for budget in budgets]
    names = [f"{CASCADE} {budget:g}" for budget in budgets]

    # Validation images have set the scale, so they are not among the images to be judged.
    datasets = [name for name in header.datasets if name != CALIBRATION]
    numbers = {name: number for number, name in enumerate(datasets)}
    members = tested["dataset"].map(numbers).to_numpy()

    # One table holds the cascades as scores, so that all share the draws of the bootstrap.
    table = ScoreTable(
        scores=names,
        datasets=datasets,
        groups={name: group for name, group in header.groups.items() if name != CALIBRATION},
        values=np.stack([each(reference, scores) for each in cascades], axis=1),
        members=members,
    )
    rows = [row for row in result_rows(table) if not row.is_full_spectrum]
    results = with_intervals(rows, table)

    # Without recorded NFE, count every image alike.
    nfe = tested["nfe"].to_numpy(float)
    if np.isnan(nfe).any():
        nfe = np.ones(len(nfe))

    points = []
    for name, each in zip(names, cascades, strict=True):
        # An image is diffused if the baseline's rank is within the band of the budget.
        is_diffused = each.unsure(reference[each.baseline], scores[each.baseline])
        by_dataset = {
            dataset: float(is_diffused[members == number].mean())
            for dataset, number in numbers.items()
        }
        points.append(
            CascadePoint(
                budget=each.budget,
                diffused=float(is_diffused.mean()),
                diffused_by_dataset=by_dataset,
                nfe=float(nfe[is_diffused].sum() / nfe.sum()),
                results=[result for result in results if result.score == name],
            )
        )
    return points
