"""Detection metrics: pure functions of two sets of scores, and a torchmetrics `Metric` that keeps the scores of all sets.

Scores are any real numbers, higher = more in-distribution; they are kept in double precision and only ever compared, so that
neither large scores nor close ones are blurred.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError


class DetectionMetrics(NamedTuple):
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


def detection_metrics(ind: Tensor, ood: Tensor) -> DetectionMetrics:
    """All metrics of in-distribution scores [n] and out-of-distribution scores [m]."""
    return DetectionMetrics(
        auroc(ind, ood),
        fpr_at_tpr(ind, ood),
        aupr(ind, ood),
        aupr(-ood, -ind),
        fpr_at_tpr(-ood, -ind),
    )


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
        raise InputError(
            f"a detection metric needs scores of both kinds; there are none of {missing} images"
        )
    scores = torch.cat([positive, negative])
    if scores.isnan().any():
        raise InputError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN")
    values, place = torch.unique(scores, return_inverse=True)
    is_positive = (torch.arange(len(scores), device=scores.device) < len(positive)).double()
    zeros = torch.zeros(len(values), dtype=torch.float64, device=scores.device)
    tp = zeros.index_add(0, place, is_positive)
    fp = zeros.index_add(0, place, 1 - is_positive)
    return tp.flip(0).cumsum(0), fp.flip(0).cumsum(0)
