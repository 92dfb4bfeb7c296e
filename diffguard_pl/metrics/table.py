"""From the table of all scores to the table of results."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .detection import DetectionMetrics, detection_metrics


class Interval(NamedTuple):
    """95 % confidence interval of a metric, by a bootstrap over images."""

    low: float
    high: float


class ResultRow(NamedTuple):
    """One score on one out-of-distribution dataset, or its mean over the datasets of a group.

    Attributes:
        group: Group of the dataset, such as near or far.
        dataset: Name of the dataset, or ``mean``.
        score: Name of the score.
        metrics: Metrics of the score on the dataset.
        intervals: Intervals by name of the metric, ``auroc`` and ``fpr95``; empty if not computed.
    """

    group: str
    dataset: str
    score: str
    metrics: DetectionMetrics
    intervals: dict[str, Interval] = {}  # noqa: RUF012  a NamedTuple's default; never written to


@dataclass(frozen=True)
class ScoreTable:
    """All scores of all images.

    Attributes:
        scores: Names of the K scores, the primary one first.
        datasets: Names of the datasets, the in-distribution one first.
        groups: Group of each out-of-distribution dataset; one without a group has its own name.
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
    """Compute a row for each dataset and score, then for the mean of each group.

    Metrics are NaN where a score is NaN or a dataset is empty.

    Raises:
        InputError: The in-distribution dataset has no scores.
    """
    ind = table.of(0)
    if len(ind) == 0:
        raise InputError(
            f"in-distribution dataset {table.datasets[0]} has no scores; test on at least one image"
        )
    # A score that is NaN for one image has no metrics; the other scores keep theirs.
    ind_has_nan = np.isnan(ind).any(axis=0)
    rows = []
    for d, dataset in enumerate(table.datasets[1:], 1):
        ood = table.of(d)
        group = table.groups.get(dataset, dataset)
        undefined = ind_has_nan | np.isnan(ood).any(axis=0) | (len(ood) == 0)
        for k, score in enumerate(table.scores):
            if undefined[k]:
                metrics = DetectionMetrics(*[float("nan")] * 5)
            else:
                metrics = detection_metrics(ind[:, k], ood[:, k])
            rows.append(ResultRow(group, dataset, score, metrics))
    return rows + group_means(rows)


def group_means(rows: list[ResultRow]) -> list[ResultRow]:
    """Compute the mean over each group of at least two datasets, for each score."""
    means = []
    for group in dict.fromkeys(row.group for row in rows):
        of_group = [row for row in rows if row.group == group]
        if len({row.dataset for row in of_group}) < 2:
            continue
        for score in dict.fromkeys(row.score for row in rows):
            metrics = [row.metrics for row in of_group if row.score == score]
            # The mean over datasets of each metric, as OpenOOD averages near and far.
            mean = [sum(values) / len(values) for values in zip(*metrics, strict=True)]
            means.append(ResultRow(group, "mean", score, DetectionMetrics(*mean)))
    return means
