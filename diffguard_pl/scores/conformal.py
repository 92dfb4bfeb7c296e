"""Conformal thresholds and p-values from in-distribution validation scores.

No out-of-distribution image is used. Scores are higher = more in-distribution, and low ones are
rejected. Thresholds and p-values (Vovk et al. 2005; Bates et al., *Testing for outliers with
conformal p-values*, 2023) hold for any score and any finite number of validation images, as long as
these and later in-distribution images are exchangeable.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import InputError

By = Literal["rank", "zscore"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Threshold:
    """Threshold below which an image is rejected.

    Attributes:
        value: k-th smallest of the n validation scores, k = floor((1 - tpr) (n + 1)).
        tpr: Fraction of in-distribution images to accept: the probability that one is rejected,
            over the validation images and it, is at most 1 - tpr.
        images: Number of validation images, n.
        low, high: 95 % confidence interval of the (1 - tpr) quantile of in-distribution scores,
            from order statistics.
        rejects_low, rejects_high: 95 % interval of the fraction of in-distribution images below
            ``value``, which is distributed as Beta(k, n + 1 - k) over draws of n validation images.
    """

    value: float
    tpr: float
    images: int
    low: float
    high: float
    rejects_low: float
    rejects_high: float


def threshold(scores: np.ndarray, tpr: float = 0.95) -> Threshold:
    """Compute the conformal threshold of in-distribution validation scores [n].

    NaN scores, which are rejected, count as the lowest.

    Raises:
        InputError: tpr is outside (0, 1), or the scores are too few or too often not finite.
    """
    from scipy.special import bdtr, betaincinv

    ordered = np.sort(lowest_for_nan(scores))
    value, k = threshold_value(ordered, tpr)
    n, alpha = len(ordered), 1 - tpr

    # The quantile: the number of scores below it is Binomial(n, alpha).
    tails = [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2]
    low, high = np.searchsorted(bdtr(np.arange(n + 1), n, alpha), tails)
    # The fraction below the value: the k-th of n uniform order statistics.
    rejects_low, rejects_high = betaincinv(k, n + 1 - k, tails)
    return Threshold(
        value=value,
        tpr=tpr,
        images=n,
        low=float(ordered[low - 1]) if low else -math.inf,
        high=float(ordered[min(high, n - 1)]),
        rejects_low=float(rejects_low),
        rejects_high=float(rejects_high),
    )


def threshold_value(ordered: np.ndarray, tpr: float) -> tuple[float, int]:
    """Compute the conformal threshold without its confidence intervals.

    Args:
        ordered: Validation scores [n], ascending, with NaN as -inf.
        tpr: Fraction of in-distribution images to accept.

    Returns:
        The threshold, and its rank k among the validation scores [n], from 1.

    Raises:
        InputError: as :func:`threshold`.
    """
    check_tpr(tpr)
    n, alpha = len(ordered), 1 - tpr
    check_count(n, tpr)

    # At most k of n + 1 exchangeable scores lie below the k-th smallest of the others.
    k = math.floor(alpha * (n + 1) + 1e-9)  # 0.05 * 220 is 10.999...
    value = ordered[k - 1]
    if not math.isfinite(value):
        raise InputError(
            f"validation scores: {int((~np.isfinite(ordered)).sum())} of {n} are not finite, more "
            f"than tpr={tpr} can reject; check the images"
        )
    return float(value), k


def check_tpr(tpr: float) -> None:
    """Raise an `InputError` unless tpr is in (0, 1)."""
    if not 0 < tpr < 1:
        raise InputError(f"tpr: {tpr} must be above 0 and below 1, such as 0.95")


def check_count(images: int, tpr: float) -> None:
    """Raise an `InputError` if this tpr needs more validation images."""
    # k >= 1 needs (1 - tpr) (n + 1) >= 1.
    least = math.ceil(1 / (1 - tpr) - 1e-9) - 1
    if images < least:
        raise InputError(
            f"tpr: {tpr} needs at least {least} in-distribution validation images, not {images}; "
            "use more images or a lower tpr"
        )


def p_values(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Compute conformal p-values of scores [m] against validation scores [n].

    p = (1 + number of validation scores <= score) / (n + 1). For an in-distribution image,
    P(p <= a) <= a for every a. A score is below ``threshold(reference, tpr).value`` exactly where
    p <= 1 - tpr, up to the rounding of 1 - tpr. NaN counts as the lowest.

    Returns:
        p-values [m] in (0, 1].
    """
    # NaN is as suspicious as the lowest score.
    ordered = np.sort(lowest_for_nan(reference))
    scores = np.where(np.isnan(scores), -np.inf, scores)
    no_higher = np.searchsorted(ordered, scores, "right")
    return (1 + no_higher) / (len(ordered) + 1)


def scale(reference: np.ndarray, scores: np.ndarray, by: By = "rank") -> np.ndarray:
    """Bring scores [m] to a scale common to all scores, keeping their order.

    Args:
        reference: In-distribution validation scores [n]; those that are not finite are left out.
        scores: Scores to scale.
        by: ``zscore``: the reference gets mean 0 and standard deviation 1. ``rank``: the fraction
            of the reference that is lower, linear from one reference score to the next. Beyond the
            lowest and highest it approaches 0 and 1, so that no two scores become equal there (up
            to rounding, very far out).

    Returns:
        Scaled scores [m]; NaN where the score is NaN.
    """
    reference = np.asarray(reference, dtype=np.float64)
    reference = np.sort(reference[np.isfinite(reference)])
    scores = np.asarray(scores, dtype=np.float64)
    if len(reference) == 0:
        raise InputError("validation scores: none are finite; check the images of the calibration")
    # Smaller spreads are rounding errors of scores that should all be equal.
    noise = 1e-9 * max(abs(reference[0]), abs(reference[-1]))
    if by == "zscore":
        spread = reference.std()
        return (scores - reference.mean()) / (spread if spread > noise else 1.0)
    return _rank(reference, scores, noise)


def _rank(reference: np.ndarray, scores: np.ndarray, noise: float) -> np.ndarray:
    """Compute the rank of scores [m] among sorted, finite reference scores [n], in (0, 1)."""
    n = len(reference)

    # Within the reference: linear between its distinct scores; equal ones share their mean rank.
    knots, first = np.unique(reference, return_index=True)
    after = np.append(first[1:], n)
    heights = (first + after + 1) / (2 * (n + 1))
    within = np.interp(scores, knots, heights)

    # Outside: hyperbolic in units of the interquartile range, or of the range if that is 0.
    unit = reference[math.ceil(0.75 * (n - 1))] - reference[math.floor(0.25 * (n - 1))]
    if unit <= noise:
        unit = max(knots[-1] - knots[0], noise, 1e-12)
    below = np.maximum((knots[0] - scores) / unit, 0)
    above = np.maximum((scores - knots[-1]) / unit, 0)
    ranks = np.where(below > 0, heights[0] / (1 + below), within)
    return np.where(above > 0, 1 - (1 - heights[-1]) / (1 + above), ranks)


def lowest_for_nan(scores: np.ndarray) -> np.ndarray:
    """Return validation scores with NaN below all others, as -inf."""
    scores = np.asarray(scores, dtype=np.float64)
    if len(scores) == 0:
        raise InputError("validation scores: none given; calibrate on in-distribution images")
    return np.where(np.isnan(scores), -np.inf, scores)
