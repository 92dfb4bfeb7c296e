"""95 % intervals of metrics by a bootstrap over images.

Images are drawn with replacement, in-distribution and out-of-distribution ones each from their own
dataset, 1,000 times. All scores and all datasets share the draws of in-distribution images, so
means over datasets and differences of scores are paired. Full-spectrum results pool the draws of
the in-distribution dataset and of the covariate-shifted ones.

A draw is the number of times that each image occurs in it, its weight. With images in the order of
a score, one cumulative sum of the weights gives AUROC and FPR@95 of the draw: nothing is sorted
twice.
"""

from collections.abc import Sequence

import numpy as np

from ..names import ALL, AVERAGE, MEAN
from .detection import rejected_at_tpr
from .table import Interval, ResultRow, ScoreTable

RESAMPLES = 1000
CHUNK_WEIGHTS = 1 << 14
"""Weights of one dataset that are worked on at a time: they fit into a processor's cache."""
METRIC_NAMES = ("auroc", "fpr95")
Key = tuple[str, str, str]
"""Group, dataset (or a mean) and score of a :class:`~diffguard_pl.metrics.table.ResultRow`."""


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
    datasets = [table.of(d) for d in range(len(table.datasets))]
    scores = range(len(table.scores))

    # Sort once: the in-distribution images, and the places of all others among them.
    sides = []
    for prefix, members in table.in_distribution_sides.items():
        sides.append(_Side(prefix, members, datasets, table.ood))

    generator = np.random.default_rng(seed)
    shape = (len(sides), len(datasets), len(table.scores), resamples, len(METRIC_NAMES))
    drawn = np.full(shape, np.nan)
    chunk = max(1, CHUNK_WEIGHTS // max(1, *map(len, datasets)))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        weights = _draw(generator, [len(images) for images in datasets], size)
        for s, side in enumerate(sides):
            pooled = np.concatenate([weights[member] for member in side.members], axis=1)
            for k in scores:
                # Number of drawn in-distribution images before each place in the score's order.
                below = _cumulative(pooled.take(side.order[k], axis=1))
                for d in table.ood:
                    ranks = side.ranked[d][k]
                    if ranks is not None:
                        drawn[s, d, k, start : start + size] = ranks.metrics(below, weights[d])

    rows: dict[Key, np.ndarray] = {}
    for s, side in enumerate(sides):
        rows |= _by_row(table, drawn[s], side.prefix)
    return rows


class _Side:
    """The images that count as in-distribution, sorted by each score.

    Args:
        prefix: Beginning of the groups of its results.
        members: Indices of its datasets.
        datasets: Scores [n, K] of every dataset.
        ood: Indices of the out-of-distribution datasets.
    """

    def __init__(self, prefix: str, members: list[int], datasets: list[np.ndarray], ood: list[int]):
        self.prefix, self.members = prefix, members
        ind = np.concatenate([datasets[member] for member in members])
        scores = range(ind.shape[1])
        self.order = [np.argsort(ind[:, k], kind="stable") for k in scores]
        self.ranked = {d: [_ranked(ind[:, k], datasets[d][:, k]) for k in scores] for d in ood}


class _Ranks:
    """Places of out-of-distribution scores [m] among the sorted in-distribution ones [n]."""

    def __init__(self, ind: np.ndarray, ood: np.ndarray):
        # Of each out-of-distribution score: how many in-distribution ones are below, and not above.
        ind = np.sort(ind)
        self.order = np.argsort(ood, kind="stable")
        ood = ood[self.order]
        self.low = np.searchsorted(ind, ood, "left")
        self.high = np.searchsorted(ind, ood, "right")
        # Of each in-distribution score as threshold: the first accepted out-of-distribution one.
        self.accepted_from = np.searchsorted(ood, ind, "left")
        self.rejected = rejected_at_tpr(len(ind))

    def metrics(self, below: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Compute AUROC and FPR@95 of each draw [R, 2].

        Args:
            below: Number of drawn in-distribution images before each place in their order
                [R, n + 1].
            weights: Number of times that each out-of-distribution image was drawn [R, m].
        """
        weights = weights.take(self.order, axis=1)
        n, m = below.shape[1] - 1, weights.shape[1]
        # Twice the in-distribution images below each out-of-distribution one, ties half.
        ind_below = below.take(self.low, axis=1) + below.take(self.high, axis=1)
        losses = np.einsum("rm,rm->r", weights, ind_below)
        # The threshold is the in-distribution image at which the draw's 5 % are passed.
        threshold = (below[:, :-1] <= self.rejected).sum(axis=1) - 1
        # All out-of-distribution images but those before the threshold are accepted.
        rejected = _cumulative(weights)[np.arange(len(weights)), self.accepted_from[threshold]]
        return np.stack([1 - losses / (2.0 * n * m), (m - rejected) / m], axis=1)


def _ranked(ind: np.ndarray, ood: np.ndarray) -> _Ranks | None:
    """Rank scores [m] among [n]; None if either are missing or hold NaN."""
    if len(ind) == 0 or len(ood) == 0 or np.isnan(ind).any() or np.isnan(ood).any():
        return None
    return _Ranks(ind, ood)


def _draw(generator: np.random.Generator, sizes: Sequence[int], resamples: int) -> list[np.ndarray]:
    """Draw the images of datasets with replacement: how often each occurs [resamples, size]."""
    weights = [np.zeros((resamples, size), dtype=np.int64) for size in sizes]
    for r in range(resamples):
        for of_dataset, size in zip(weights, sizes, strict=True):
            if size:
                images = generator.integers(size, size=size)
                of_dataset[r] = np.bincount(images, minlength=size)
    return weights


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """Sum the weights [R, n] before each place, and all of them [R, n + 1]."""
    sums = np.zeros((len(weights), weights.shape[1] + 1), dtype=np.int64)
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _by_row(table: ScoreTable, drawn: np.ndarray, prefix: str) -> dict[Key, np.ndarray]:
    """Arrange replicates [datasets, scores, R, 2] by row, and add the means over datasets."""
    groups = {d: prefix + table.group_of(d) for d in table.ood}
    rows: dict[Key, np.ndarray] = {}
    for k, score in enumerate(table.scores):
        for d, group in groups.items():
            rows[group, table.datasets[d], score] = drawn[d, k]
        for group in dict.fromkeys(groups.values()):
            members = [d for d, of in groups.items() if of == group]
            rows[group, MEAN, score] = drawn[members, k].mean(axis=0)
        # Datasets share the draws of in-distribution images, so the mean of a draw is paired.
        rows[prefix + ALL, AVERAGE, score] = drawn[table.ood, k].mean(axis=0)
    return rows
