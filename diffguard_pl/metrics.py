"""Detection metrics: pure functions of two sets of scores, and a torchmetrics `Metric` that keeps the scores of all sets.

Scores are any real numbers, higher = more in-distribution; they are kept in double precision and only ever compared, so that
neither large scores nor close ones are blurred.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .errors import InputError


class Figures(NamedTuple):
    """One score on one out-of-distribution set, each a share in [0, 1].

    Attributes:
        auroc: area under the ROC curve.
        fpr95: share of out-of-distribution images accepted where at least 95 % of in-distribution ones are (the original's).
        aupr_in: area under precision and recall, in-distribution positive.
        aupr_out: the same, out-of-distribution positive.
        fpr95_openood: share of in-distribution images rejected where at least 95 % of out-of-distribution ones are (OpenOOD v1.5).
    """

    auroc: float
    fpr95: float
    aupr_in: float
    aupr_out: float
    fpr95_openood: float


class Interval(NamedTuple):
    """Where a figure lies with 95 % confidence, by a bootstrap over images."""

    low: float
    high: float


class Row(NamedTuple):
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
    figures: Figures
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


def figures(ind: Tensor, ood: Tensor) -> Figures:
    """All metrics of in-distribution scores [n] and out-of-distribution scores [m]."""
    return Figures(auroc(ind, ood), fpr_at_tpr(ind, ood), aupr(ind, ood), aupr(-ood, -ind), fpr_at_tpr(-ood, -ind))


def auroc(positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve: how often a positive score [n] beats a negative one [m], ties counting half."""
    tp, fp = _counts(positive, negative)
    steps = torch.diff(fp, prepend=fp.new_zeros(1))
    before = torch.cat([tp.new_zeros(1), tp[:-1]])
    return (steps * (before + tp)).sum().item() / (2 * len(positive) * len(negative))


def aupr(positive: Tensor, negative: Tensor) -> float:
    """Area under the precision-recall curve by trapezoids, as ``sklearn.metrics.auc(recall, precision)``."""
    tp, fp = _counts(positive, negative)
    precision = torch.cat([tp.new_ones(1), tp / (tp + fp)])
    recall = torch.cat([tp.new_zeros(1), tp / len(positive)])
    return torch.trapezoid(precision, recall).item()


def fpr_at_tpr(positive: Tensor, negative: Tensor, tpr: float = 0.95) -> float:
    """Share of negatives at or above the highest threshold that at least ``tpr`` of the positives reach."""
    tp, fp = _counts(positive, negative)
    first = int((tp / len(positive) >= tpr).nonzero()[0])
    return fp[first].item() / len(negative)


def _counts(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """How many of each are at or above each distinct score, from the highest score down; in float64."""
    if len(positive) == 0 or len(negative) == 0:
        missing = "in-distribution" if len(positive) == 0 else "out-of-distribution"
        raise InputError(f"a detection metric needs scores of both kinds; there are none of {missing} images")
    scores = torch.cat([positive, negative])
    if scores.isnan().any():
        raise InputError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN")
    values, place = torch.unique(scores, return_inverse=True)
    is_positive = (torch.arange(len(scores), device=scores.device) < len(positive)).double()
    zeros = torch.zeros(len(values), dtype=torch.float64, device=scores.device)
    tp = zeros.index_add(0, place, is_positive)
    fp = zeros.index_add(0, place, 1 - is_positive)
    return tp.flip(0).cumsum(0), fp.flip(0).cumsum(0)


class OODMetrics(Metric):
    """Every score on every out-of-distribution set, against one in-distribution set; exact for any real scores.

    Args:
        scores: names of the scores, K of them.
        datasets: names of the data sets, the in-distribution one first.
        groups: group of each out-of-distribution set, such as near and far; a set without one has its name.
        first_rank: make the table on the first rank alone; the others get an empty one, and their time.
        derive: makes of the table of all scores and sets the one that figures are of.

    Example:
        >>> metric = OODMetrics(["msp"], ["cifar10", "svhn"])
        >>> metric.update(torch.tensor([[0.9], [0.8], [0.3]]), torch.tensor([0, 0, 1]))
        >>> metric.compute()[0].figures.auroc
        1.0
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    values: list[Tensor]
    members: list[Tensor]
    indices: list[Tensor]

    def __init__(
        self,
        scores: list[str],
        datasets: list[str],
        groups: dict[str, str] | None = None,
        first_rank: bool = False,
        derive: Callable[[ScoreTable], ScoreTable] | None = None,
    ):
        super().__init__()
        if len(datasets) < 2 and derive is None:
            raise InputError(f"data sets {datasets}: expected an in-distribution one and at least one other")
        self.scores, self.datasets, self.groups = scores, datasets, groups or {}
        self.first_rank, self.derive = first_rank, derive
        self.sizes: dict[str, int] = {}
        self.table: ScoreTable | None = None
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("members", [], dist_reduce_fx="cat")
        self.add_state("indices", [], dist_reduce_fx="cat")

    def update(self, values: Tensor, members: Tensor, indices: Tensor | None = None) -> None:
        """Count images.

        Args:
            values: scores [N, K].
            members: [N] the data set of each image: 0 for the in-distribution one.
            indices: [N] of each image in its set, so that ``table`` has one order however the images were shared out; none: as
                they come.
        """
        if values.ndim != 2 or values.shape[1] != len(self.scores) or members.shape != values.shape[:1]:
            raise InputError(
                f"scores are {list(values.shape)} of data sets {list(members.shape)}; expected [N, {len(self.scores)}] and [N]"
            )
        exact = torch.float32 if values.device.type == "mps" else torch.float64
        self.values.append(values.detach().to(exact))
        self.members.append(members.detach())
        self.indices.append(torch.zeros_like(members) if indices is None else indices.detach().to(members))

    def compute(self) -> list[Row]:
        """A row for each set and score, then for the mean of each group of several sets; NaN where a score is NaN or a
        set is empty.

        Leaves the gathered scores in ``table``, set by set, and in ``sizes`` how many images of each set there were.
        """
        if self.first_rank and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return []
        values, members, indices = (dim_zero_cat(of).cpu().numpy() for of in (self.values, self.members, self.indices))
        order = np.lexsort((indices, members))
        table = ScoreTable(self.scores, self.datasets, self.groups, values[order].astype(np.float64), members[order])
        self.table = table if self.derive is None else self.derive(table)
        self.sizes = sizes(self.table)
        return result_rows(self.table)


def sizes(table: ScoreTable) -> dict[str, int]:
    """How many images of each data set have scores."""
    return {name: int((table.members == d).sum()) for d, name in enumerate(table.datasets)}


def result_rows(table: ScoreTable) -> list[Row]:
    """A row for each set and score, then for the mean of each group of several sets; NaN where a score is NaN or a set is empty.

    Raises:
        InputError: there are no in-distribution scores.
    """
    ind = torch.from_numpy(table.of(0))
    if len(ind) == 0:
        raise InputError(f"there are no scores of the in-distribution set {table.datasets[0]}")
    rows = []
    for d, dataset in enumerate(table.datasets[1:], 1):
        ood = torch.from_numpy(table.of(d))
        group = table.groups.get(dataset, dataset)
        for k, score in enumerate(table.scores):
            broken = len(ood) == 0 or ind[:, k].isnan().any() or ood[:, k].isnan().any()
            measured = Figures(*[float("nan")] * 5) if broken else figures(ind[:, k], ood[:, k])
            rows.append(Row(group, dataset, score, measured))
    return rows + group_means(rows)


def group_means(rows: list[Row]) -> list[Row]:
    """The mean over each group of at least two sets, for each score."""
    means = []
    for group in dict.fromkeys(row.group for row in rows):
        datasets = dict.fromkeys(row.dataset for row in rows if row.group == group)
        if len(datasets) < 2:
            continue
        for score in dict.fromkeys(row.score for row in rows):
            of_score = [row.figures for row in rows if row.group == group and row.score == score]
            means.append(Row(group, "mean", score, Figures(*(sum(column) / len(column) for column in zip(*of_score, strict=True)))))
    return means
