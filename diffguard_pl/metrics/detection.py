"""Detection metrics: pure functions of two sets of scores, and a torchmetrics `Metric` that keeps the scores of all sets.

Scores are any real numbers, higher = more in-distribution; they are kept in double precision and only ever compared, so that
neither large scores nor close ones are blurred.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

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


def detection_metrics(ind: ArrayLike, ood: ArrayLike) -> DetectionMetrics:
    """Compute all metrics of in-distribution scores [n] and out-of-distribution scores [m]."""
    ind, ood = np.asarray(ind), np.asarray(ood)
    return DetectionMetrics(
        auroc(ind, ood),
        fpr_at_tpr(ind, ood),
        aupr(ind, ood),
        aupr(-ood, -ind),
        fpr_at_tpr(-ood, -ind),
    )


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Compute the area under the ROC curve: how often a positive score [n] exceeds a negative one [m], ties counting half."""
    tp, fp = _counts(positive, negative)
    # A negative beats none of the positives above it, and half of those that tie with it.
    negatives_here = np.diff(fp, prepend=0)
    positives_above = np.concatenate([[0], tp[:-1]])
    beaten = (negatives_here * (positives_above + tp)).sum() / 2
    return float(beaten / (tp[-1] * fp[-1]))


def aupr(positive: ArrayLike, negative: ArrayLike) -> float:
    """Compute the area under the precision-recall curve by trapezoids, as ``sklearn.metrics.auc(recall, precision)``."""
    tp, fp = _counts(positive, negative)
    precision = np.concatenate([[1], tp / (tp + fp)])
    recall = np.concatenate([[0], tp / tp[-1]])
    return float(((precision[1:] + precision[:-1]) / 2 * np.diff(recall)).sum())


def fpr_at_tpr(positive: ArrayLike, negative: ArrayLike, tpr: float = 0.95) -> float:
    """Compute the fraction of negatives at or above the highest threshold that at least ``tpr`` of the positives reach."""
    tp, fp = _counts(positive, negative)
    first = np.argmax(tp / tp[-1] >= tpr)
    return float(fp[first] / fp[-1])


def _counts(positive: ArrayLike, negative: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Count the positives and the negatives at or above each distinct score, from the highest score down."""
    positive, negative = np.asarray(positive), np.asarray(negative)
    if len(positive) == 0 or len(negative) == 0:
        missing = "in-distribution" if len(positive) == 0 else "out-of-distribution"
        raise InputError(
            f"detection metrics need scores of both kinds; none of {missing} images were given"
        )
    scores = np.concatenate([positive, negative])
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    values, place = np.unique(scores, return_inverse=True)
    tp = np.bincount(place[: len(positive)], minlength=len(values))
    fp = np.bincount(place[len(positive) :], minlength=len(values))
    return tp[::-1].cumsum(), fp[::-1].cumsum()
