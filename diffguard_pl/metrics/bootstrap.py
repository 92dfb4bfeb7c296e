"""95 % intervals of metrics by a bootstrap over images.

Images are drawn with replacement, in-distribution and out-of-distribution ones each from their own
dataset, 1,000 times. All scores and all datasets share the draws of in-distribution images, so
means over datasets and differences of scores are paired.

A draw is the number of times that each image occurs in it, its weight. With images in the order of
a score, one cumulative sum of the weights gives AUROC and FPR@95 of the draw: nothing is sorted
twice.
"""

import numpy as np

from .detection import rejected_at_tpr
from .table import Interval, ResultRow, ScoreTable

RESAMPLES = 1000
METRIC_NAMES = ("auroc", "fpr95")
Key = tuple[str, str, str]
"""Group, dataset (or ``mean``) and score of a :class:`~diffguard_pl.metrics.table.ResultRow`."""


def with_intervals(
    rows: list[ResultRow], table: ScoreTable, resamples: int = RESAMPLES
) -> list[ResultRow]:
    """Add to rows the intervals of their AUROC and FPR@95; NaN where the metric is."""
    drawn = replicates(table, resamples)
    return [
        row._replace(intervals=intervals(drawn[row.group, row.dataset, row.score])) for row in rows
    ]


def intervals(drawn: np.ndarray) -> dict[str, Interval]:
    """Compute the 95 % intervals of replicates [R, 2] of AUROC and FPR@95, by name."""
    if len(drawn) == 0:
        return {name: Interval(float("nan"), float("nan")) for name in METRIC_NAMES}
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {name: Interval(float(low[i]), float(high[i])) for i, name in enumerate(METRIC_NAMES)}


def replicates(
    table: ScoreTable, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Key, np.ndarray]:
    """Compute AUROC and FPR@95 of each draw, [resamples, 2], for every row of the result table.

    Tables of the same images in the same order get the same draws.
    """
    ind, *oods = [table.of(d) for d in range(len(table.datasets))]
    scores = range(len(table.scores))

    # Sort once: the images of each dataset, and their places among the in-distribution ones.
    ind_order = [np.argsort(ind[:, k], kind="stable") for k in scores]
    ranked = [[_ranked(ind[:, k], ood[:, k]) for k in scores] for ood in oods]

    generator = np.random.default_rng(seed)
    drawn = np.full((len(oods), len(table.scores), resamples, len(METRIC_NAMES)), np.nan)
    for r in range(resamples):
        weights = [_draw(generator, len(images)) for images in (ind, *oods)]
        for k in scores:
            # Number of drawn in-distribution images before each place in the order of the score.
            below = np.concatenate([[0], np.cumsum(weights[0][ind_order[k]])])
            for d in range(len(oods)):
                ranks = ranked[d][k]
                if ranks is not None:
                    drawn[d, k, r] = ranks.metrics(below, weights[d + 1])
    return _by_row(table, drawn)


class _Ranks:
    """Places of out-of-distribution scores [m] among the sorted in-distribution ones [n]."""

    def __init__(self, ind: np.ndarray, ood: np.ndarray):
        ind = np.sort(ind)
        self.order = np.argsort(ood, kind="stable")
        ood = ood[self.order]
        self.low = np.searchsorted(ind, ood, "left")
        self.high = np.searchsorted(ind, ood, "right")
        self.accepted_from = np.searchsorted(ood, ind, "left")
        self.rejected = rejected_at_tpr(len(ind))

    def metrics(self, below: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
        """Compute AUROC and FPR@95 of one draw.

        Args:
            below: Number of drawn in-distribution images before each place in their order [n + 1].
            weights: Number of times that each out-of-distribution image was drawn [m].
        """
        weights = weights[self.order]
        n, m = below[-1], len(weights)
        # Twice the in-distribution images below each out-of-distribution one, ties half.
        losses = weights @ (below[self.low] + below[self.high])
        # The threshold is the in-distribution image at which the draw's 5 % are passed.
        threshold = np.searchsorted(below[:-1], self.rejected, "right") - 1
        accepted = weights[self.accepted_from[threshold] :].sum()
        return 1 - losses / (2.0 * n * m), accepted / m


def _ranked(ind: np.ndarray, ood: np.ndarray) -> _Ranks | None:
    """Rank scores [m] among [n]; None if either are missing or hold NaN."""
    if len(ind) == 0 or len(ood) == 0 or np.isnan(ind).any() or np.isnan(ood).any():
        return None
    return _Ranks(ind, ood)


def _draw(generator: np.random.Generator, size: int) -> np.ndarray:
    """Draw ``size`` images with replacement: how often each occurs [size]."""
    if size == 0:
        return np.zeros(0, dtype=np.int64)
    return np.bincount(generator.integers(size, size=size), minlength=size)


def _by_row(table: ScoreTable, drawn: np.ndarray) -> dict[Key, np.ndarray]:
    """Arrange replicates [datasets, scores, R, 2] by row, and add the means of the groups."""
    groups = [table.groups.get(name, name) for name in table.datasets[1:]]
    rows: dict[Key, np.ndarray] = {}
    for k, score in enumerate(table.scores):
        for d, name in enumerate(table.datasets[1:]):
            rows[groups[d], name, score] = drawn[d, k]
        for group in dict.fromkeys(groups):
            members = [d for d, of in enumerate(groups) if of == group]
            rows[group, "mean", score] = drawn[members, k].mean(axis=0)
    return rows
