"""From the table of all scores to the table of results."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..names import ALL, AVERAGE, CSID, FULL_SPECTRUM, MEAN
from .detection import DetectionMetrics, detection_metrics


class Interval(NamedTuple):
    """95 % confidence interval of a metric, by a bootstrap over images."""

    low: float
    high: float


class ResultRow(NamedTuple):
    """One score on one out-of-distribution dataset, or its mean over several datasets.

    Attributes:
        group: Group of the dataset, such as near or far; ``all`` for the average. ``fsood_near``
            and so on where covariate-shifted datasets count as in-distribution, too.
        dataset: Name of the dataset; ``mean`` for the mean over the datasets of the group, and
            ``average`` for that over all out-of-distribution datasets.
        score: Name of the score.
        metrics: Metrics of the score on the dataset.
        intervals: Intervals by name of the metric, ``auroc`` and ``fpr95``; empty if not computed.
    """

    group: str
    dataset: str
    score: str
    metrics: DetectionMetrics
    intervals: dict[str, Interval] = {}  # noqa: RUF012  a NamedTuple's default; never written to

    @property
    def is_full_spectrum(self) -> bool:
        """Whether covariate-shifted datasets count as in-distribution."""
        return self.group.startswith(FULL_SPECTRUM)

    @property
    def is_mean(self) -> bool:
        """Whether the row is a mean over datasets."""
        return self.dataset in (MEAN, AVERAGE)

    @property
    def title(self) -> str:
        """Name for tables: that of the dataset, or ``near mean`` for the mean of a group."""
        return f"{self.group} {MEAN}" if self.dataset == MEAN else self.dataset

    @property
    def tag(self) -> str:
        """Name for loggers: that of the dataset, or of the group for its mean."""
        if self.dataset == MEAN:
            return self.group
        return FULL_SPECTRUM + self.dataset if self.is_full_spectrum else self.dataset


@dataclass(frozen=True)
class ScoreTable:
    """All scores of all images.

    Attributes:
        scores: Names of the K scores, the primary one first.
        datasets: Names of the datasets, the in-distribution one first.
        groups: Group of each other dataset; one without a group has its own name. Those of the
            group ``csid`` are covariate-shifted in-distribution datasets, all others
            out-of-distribution.
        values: Scores [N, K], float64, higher = more in-distribution.
        members: Index into ``datasets`` of each image [N].
    """

    scores: list[str]
    datasets: list[str]
    groups: dict[str, str]
    values: np.ndarray
    members: np.ndarray

    def of(self, dataset: int) -> np.ndarray:
        """Return the scores [n, K] of one dataset, by its index."""
        return self.values[self.members == dataset]

    def group_of(self, dataset: int) -> str:
        """Return the group of a dataset other than the first, by its index."""
        name = self.datasets[dataset]
        return self.groups.get(name, name)

    @property
    def shifted(self) -> list[int]:
        """Indices of the covariate-shifted in-distribution datasets."""
        others = range(1, len(self.datasets))
        return [dataset for dataset in others if self.group_of(dataset) == CSID]

    @property
    def ood(self) -> list[int]:
        """Indices of the out-of-distribution datasets."""
        others = range(1, len(self.datasets))
        return [dataset for dataset in others if self.group_of(dataset) != CSID]

    @property
    def in_distribution_sides(self) -> dict[str, list[int]]:
        """Indices of the datasets that count as in-distribution, by the prefix of the results.

        These are the first dataset alone and, with covariate-shifted datasets, all of them pooled:
        full-spectrum detection (Yang et al. 2023; OpenOOD v1.5).
        """
        sides = {"": [0]}
        if self.shifted:
            sides[FULL_SPECTRUM] = [0, *self.shifted]
        return sides

    def in_distribution(self, prefix: str) -> np.ndarray:
        """Return the scores [n, K] of one of the :attr:`in_distribution_sides`, pooled."""
        members = self.in_distribution_sides[prefix]
        return np.concatenate([self.of(member) for member in members])


def sizes(table: ScoreTable) -> dict[str, int]:
    """Count the images of each dataset that have scores."""
    return {name: int((table.members == d).sum()) for d, name in enumerate(table.datasets)}


def never_finite(table: ScoreTable) -> dict[str, list[str]]:
    """Return the datasets on which a score is never finite, by the name of the score."""
    found: dict[str, list[str]] = {}
    for d, dataset in enumerate(table.datasets):
        values = table.of(d)
        if len(values) == 0:
            continue
        for k, score in enumerate(table.scores):
            if not np.isfinite(values[:, k]).any():
                found.setdefault(score, []).append(dataset)
    return found


def result_rows(table: ScoreTable) -> list[ResultRow]:
    """Compute a row for each out-of-distribution dataset and score, then for means over datasets.

    These are the mean of each group, and the average of all datasets.

    With covariate-shifted datasets, the same rows follow once more against these and the
    in-distribution dataset pooled. Metrics are NaN where a score is NaN or a dataset is empty.

    Raises:
        InputError: The in-distribution dataset has no scores.
    """
    if len(table.of(0)) == 0:
        raise InputError(
            f"in-distribution dataset {table.datasets[0]} has no scores; test on at least one image"
        )
    rows: list[ResultRow] = []
    for prefix in table.in_distribution_sides:
        rows += _rows_against(table.in_distribution(prefix), table, prefix)
    return rows


def _rows_against(ind: np.ndarray, table: ScoreTable, prefix: str) -> list[ResultRow]:
    """Compute the rows against in-distribution scores [n, K]; the prefix begins their group."""
    # A score that is NaN for one image has no metrics; the other scores keep theirs.
    ind_has_nan = np.isnan(ind).any(axis=0)
    rows = []
    for d in table.ood:
        dataset, ood = table.datasets[d], table.of(d)
        group = prefix + table.group_of(d)
        undefined = ind_has_nan | np.isnan(ood).any(axis=0) | (len(ood) == 0)
        for k, score in enumerate(table.scores):
            if undefined[k]:
                metrics = DetectionMetrics(*[float("nan")] * 5)
            else:
                metrics = detection_metrics(ind[:, k], ood[:, k])
            rows.append(ResultRow(group, dataset, score, metrics))
    means = []
    for group in dict.fromkeys(row.group for row in rows):
        # As OpenOOD averages near and far.
        means += _means([row for row in rows if row.group == group], group, MEAN)
    # As in the tables of the paper: unweighted, whatever the groups and the sizes of the datasets.
    return rows + means + _means(rows, prefix + ALL, AVERAGE)


def _means(rows: list[ResultRow], group: str, name: str) -> list[ResultRow]:
    """Compute the mean of each metric over at least two datasets, for each score."""
    if len({row.dataset for row in rows}) < 2:
        return []
    means = []
    for score in dict.fromkeys(row.score for row in rows):
        metrics = [row.metrics for row in rows if row.score == score]
        mean = [sum(values) / len(values) for values in zip(*metrics, strict=True)]
        means.append(ResultRow(group, name, score, DetectionMetrics(*mean)))
    return means
