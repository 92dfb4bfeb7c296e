"""TODO."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .detection import DetectionMetrics, detection_metrics


class Interval(NamedTuple):
    """Where a figure lies with 95 % confidence, by a bootstrap over images."""

    low: float
    high: float


class ResultRow(NamedTuple):
    """A line of the result table: one score on one out-of-distribution set, or its mean over the sets of a group.

    Attributes:
        group: near, far, or another of the data module's.
        dataset: name of the set, or ``mean``.
        score: name of the score.
        figures: as measured.
        intervals: by the name of the figure, for ``auroc`` and ``fpr95``; empty where they were not computed.
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
        scores: names of the scores, K of them, the headline one first.
        datasets: names of the data sets, the in-distribution one first.
        groups: group of each out-of-distribution set; a set without one has its name.
        values: float64 [N, K], higher = more in-distribution.
        members: [N] which data set an image is of.
    """

    scores: list[str]
    datasets: list[str]
    groups: dict[str, str]
    values: np.ndarray
    members: np.ndarray

    def of(self, dataset: int) -> np.ndarray:
        """The scores [n, K] of one data set."""
        return self.values[self.members == dataset]


def sizes(table: ScoreTable) -> dict[str, int]:
    """How many images of each data set have scores."""
    return {name: int((table.members == d).sum()) for d, name in enumerate(table.datasets)}


def result_rows(table: ScoreTable) -> list[ResultRow]:
    """A row for each set and score, then for the mean of each group of several sets; NaN where a score is NaN or a set is empty.

    Raises:
        InputError: there are no in-distribution scores.
    """
    ind = table.of(0)
    if len(ind) == 0:
        raise InputError(f"there are no scores of the in-distribution set {table.datasets[0]}")
    rows = []
    for d, dataset in enumerate(table.datasets[1:], 1):
        ood = table.of(d)
        group = table.groups.get(dataset, dataset)
        for k, score in enumerate(table.scores):
            broken = len(ood) == 0 or np.isnan(ind[:, k]).any() or np.isnan(ood[:, k]).any()
            measured = (
                DetectionMetrics(*[float("nan")] * 5)
                if broken
                else detection_metrics(ind[:, k], ood[:, k])
            )
            rows.append(ResultRow(group, dataset, score, measured))
    return rows + group_means(rows)


def group_means(rows: list[ResultRow]) -> list[ResultRow]:
    """The mean over each group of at least two sets, for each score."""
    means = []
    for group in dict.fromkeys(row.group for row in rows):
        datasets = dict.fromkeys(row.dataset for row in rows if row.group == group)
        if len(datasets) < 2:
            continue
        for score in dict.fromkeys(row.score for row in rows):
            of_score = [row.metrics for row in rows if row.group == group and row.score == score]
            means.append(
                ResultRow(
                    group,
                    "mean",
                    score,
                    DetectionMetrics(
                        *(sum(column) / len(column) for column in zip(*of_score, strict=True))
                    ),
                )
            )
    return means
