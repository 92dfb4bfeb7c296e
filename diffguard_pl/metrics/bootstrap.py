"""How sure is a figure? 95 % intervals by a bootstrap over images.

Images are drawn with replacement, in-distribution and out-of-distribution ones each from their own set, 1,000 times. All scores
and all sets share the draws of in-distribution images, so that means over sets and differences of scores are paired.

A draw is the number of times that each image is in it. With images in the order of a score, one cumulative sum of these numbers
gives AUROC and FPR@95 of the draw, so that nothing is sorted twice.
"""

import numpy as np

from .table import Interval, ResultRow, ScoreTable

RESAMPLES = 1000
METRIC_NAMES = ("auroc", "fpr95")
Key = tuple[str, str, str]
"""Group, data set (or ``mean``) and score, as in a :class:`~diffguard_pl.metrics.table.ResultRow`."""


def with_intervals(
    rows: list[ResultRow], table: ScoreTable, resamples: int = RESAMPLES
) -> list[ResultRow]:
    """The rows with the intervals of their AUROC and FPR@95; NaN where the figure is."""
    drawn = replicates(table, resamples)
    return [
        row._replace(intervals=intervals(drawn[row.group, row.dataset, row.score])) for row in rows
    ]


def intervals(drawn: np.ndarray) -> dict[str, Interval]:
    """Replicates [R, 2] of AUROC and FPR@95 -> their 95 % intervals by name."""
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0) if len(drawn) else np.full((2, 2), np.nan)
    return {name: Interval(float(low[i]), float(high[i])) for i, name in enumerate(METRIC_NAMES)}


def replicates(
    table: ScoreTable, resamples: int = RESAMPLES, seed: int = 0
) -> dict[Key, np.ndarray]:
    """AUROC and FPR@95 of each draw, [resamples, 2], for every row of the result table.

    Tables of the same images in the same order get the same draws.
    """
    sets = [table.of(d) for d in range(len(table.datasets))]
    generator = np.random.default_rng(seed)
    drawn = np.full((len(sets) - 1, len(table.scores), resamples, len(METRIC_NAMES)), np.nan)
    orders = [
        [
            _Order(sets[0][:, k], ood[:, k]) if _usable(sets[0][:, k], ood[:, k]) else None
            for k in range(len(table.scores))
        ]
        for ood in sets[1:]
    ]
    by_score = [np.argsort(sets[0][:, k], kind="stable") for k in range(len(table.scores))]
    for r in range(resamples):
        weights = [_draw(generator, len(of_set)) for of_set in sets]
        for k, order in enumerate(by_score):
            below = np.concatenate([[0], np.cumsum(weights[0][order])])
            for d, of_set in enumerate(orders):
                found = of_set[k]
                if found is not None:
                    drawn[d, k, r] = found.metrics(below, weights[d + 1])
    groups = [table.groups.get(name, name) for name in table.datasets[1:]]
    rows: dict[Key, np.ndarray] = {}
    for k, score in enumerate(table.scores):
        for d, name in enumerate(table.datasets[1:]):
            rows[groups[d], name, score] = drawn[d, k]
        for group in set(groups):
            rows[group, "mean", score] = drawn[
                [d for d, of_set in enumerate(groups) if of_set == group], k
            ].mean(axis=0)
    return rows


class _Order:
    """Where out-of-distribution scores [m] stand among the sorted in-distribution ones [n]."""

    def __init__(self, ind: np.ndarray, ood: np.ndarray):
        ind = np.sort(ind)
        self.order = np.argsort(ood, kind="stable")
        ood = ood[self.order]
        self.low, self.high = np.searchsorted(ind, ood, "left"), np.searchsorted(ind, ood, "right")
        self.accepted_from = np.searchsorted(ood, ind, "left")
        count = len(ind)
        self.rejected = next(
            c for c in range(int(0.05 * count) + 1, -1, -1) if (count - c) / count >= 0.95
        )

    def metrics(self, below: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
        """AUROC and FPR@95.

        Args:
            below: [n + 1] how many drawn in-distribution images lie before each place in their order.
            weights: [m] how often each out-of-distribution image was drawn.
        """
        weights = weights[self.order]
        size, count = below[-1], len(weights)
        beaten = weights @ (
            below[self.low] + below[self.high]
        )  # twice the in-distribution images below, ties half
        threshold = np.searchsorted(below[:-1], self.rejected, "right") - 1
        return 1 - beaten / (2.0 * size * count), weights[
            self.accepted_from[threshold] :
        ].sum() / count


def _usable(ind: np.ndarray, ood: np.ndarray) -> bool:
    return len(ind) > 0 and len(ood) > 0 and not (np.isnan(ind).any() or np.isnan(ood).any())


def _draw(generator: np.random.Generator, size: int) -> np.ndarray:
    return (
        np.bincount(generator.integers(size, size=size), minlength=size)
        if size
        else np.zeros(0, dtype=np.int64)
    )
