"""Detection metrics: pure functions of in-distribution and out-of-distribution scores.

Scores are any real numbers, higher = more in-distribution. They are only ever compared, so neither
large scores nor close ones lose precision.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError

TPR = 0.95
"""True positive rate at which a threshold is set."""


class DetectionMetrics(NamedTuple):
    """Metrics of one score on one out-of-distribution dataset, each in [0, 1].

    Attributes:
        auroc: Area under the ROC curve.
        fpr95: Fraction of out-of-distribution images accepted at the threshold that at least 95 %
            of in-distribution ones reach (the original's).
        aupr_in: Area under the precision-recall curve, in-distribution positive.
        aupr_out: The same, out-of-distribution positive.
        fpr95_openood: Fraction of in-distribution images rejected at the threshold that rejects at
            least 95 % of out-of-distribution ones (OpenOOD v1.5).
    """

    auroc: float
    fpr95: float
    aupr_in: float
    aupr_out: float
    fpr95_openood: float


def detection_metrics(ind: ArrayLike, ood: ArrayLike) -> DetectionMetrics:
    """Compute all metrics of in-distribution scores [n] and out-of-distribution scores [m]."""
    ind, ood = np.asarray(ind), np.asarray(ood)
    # Negated and swapped, out-of-distribution is the positive class.
    return DetectionMetrics(
        auroc=auroc(ind, ood),
        fpr95=fpr_at_tpr(ind, ood),
        aupr_in=aupr(ind, ood),
        aupr_out=aupr(-ood, -ind),
        fpr95_openood=fpr_at_tpr(-ood, -ind),
    )


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Compute the area under the ROC curve.

    It is the probability that a positive score [n] exceeds a negative one [m], ties counting half.

    Raises:
        InputError: Scores of either kind are missing, or some are NaN.
    """
    tp, fp = _counts(positive, negative)
    # A negative loses to the positives above it, and to half of those that tie with it.
    negatives_here = np.diff(fp, prepend=0)
    positives_above = np.concatenate([[0], tp[:-1]])
    wins = (negatives_here * (positives_above + tp)).sum() / 2
    return float(wins / (tp[-1] * fp[-1]))


def aupr(positive: ArrayLike, negative: ArrayLike) -> float:
    """Compute the area under the precision-recall curve of scores [n] and [m] by trapezoids.

    As ``sklearn.metrics.auc(recall, precision)``.

    Raises:
        InputError: Scores of either kind are missing, or some are NaN.
    """
    tp, fp = _counts(positive, negative)
    # One point per distinct score, after (recall 0, precision 1).
    precision = np.concatenate([[1], tp / (tp + fp)])
    recall = np.concatenate([[0], tp / tp[-1]])
    # Trapezoids, unlike average precision, which takes steps.
    return float(((precision[1:] + precision[:-1]) / 2 * np.diff(recall)).sum())


def fpr_at_tpr(positive: ArrayLike, negative: ArrayLike, tpr: float = TPR) -> float:
    """Compute the fraction of negative scores [m] at or above :func:`threshold_at_tpr`.

    Raises:
        InputError: Scores of either kind are missing, or some are NaN.
    """
    positive, negative = _checked(positive, negative)
    accepted = np.count_nonzero(negative >= threshold_at_tpr(positive, tpr))
    return accepted / len(negative)


def threshold_at_tpr(positive: ArrayLike, tpr: float = TPR) -> float:
    """Return the highest threshold that at least ``tpr`` of the positive scores [n] reach.

    NaN scores are left out; NaN if no score is left.
    """
    scores = np.asarray(positive)
    scores = np.sort(scores[~np.isnan(scores)])
    if len(scores) == 0:
        return float("nan")
    return float(scores[rejected_at_tpr(len(scores), tpr)])


def rejected_at_tpr(count: int, tpr: float = TPR) -> int:
    """Return the largest number r of ``count`` > 0 scores with (count - r) / count >= tpr."""
    rejected = int((1 - tpr) * count) + 1  # at most one too many, however 1 - tpr is rounded
    while (count - rejected) / count < tpr:
        rejected -= 1
    return rejected


def _counts(positive: ArrayLike, negative: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Count the positives and negatives at or above each distinct score, highest score first."""
    positive, negative = _checked(positive, negative)
    # Ties share one threshold, so scores are counted by distinct value.
    values, place = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    tp = np.bincount(place[: len(positive)], minlength=len(values))
    fp = np.bincount(place[len(positive) :], minlength=len(values))
    # From the highest score down: what a threshold at each value accepts.
    return tp[::-1].cumsum(), fp[::-1].cumsum()


def _checked(positive: ArrayLike, negative: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays, or raise an `InputError` if they are empty or hold NaN."""
    positive, negative = np.asarray(positive), np.asarray(negative)
    if len(positive) == 0 or len(negative) == 0:
        missing = "in-distribution" if len(positive) == 0 else "out-of-distribution"
        raise InputError(
            f"detection metrics need scores of both kinds; none of {missing} images were given"
        )
    nan = int(np.isnan(positive).sum() + np.isnan(negative).sum())
    if nan:
        raise InputError(
            f"detection metrics: {nan} of {len(positive) + len(negative)} scores are NaN"
        )
    return positive, negative
