"""From scores to decisions: what in-distribution images of a validation set score, and what that makes of another image's score.

Nothing here sees an out-of-distribution image. Scores are higher = more in-distribution; a test of "is in-distribution" rejects low
ones. Conformal p-values and thresholds (Vovk et al. 2005; Bates et al., *Testing for outliers with conformal p-values*, 2023) hold
for any score and any finite number of validation images, as long as these and the images to come are drawn alike.
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
    """Where to reject: an image whose score is below ``value``.

    Attributes:
        value: the k-th smallest of the validation scores, k = floor((1 - tpr) (n + 1)).
        tpr: share of in-distribution images that are to be accepted: P(one is rejected) <= 1 - tpr, over validation images and it.
        images: n, how many validation images it is from.
        low, high: 95 % interval of the value that rejects exactly 1 - tpr of all in-distribution images, from order statistics.
        rejects_low, rejects_high: 95 % interval of the share of in-distribution images that ``value`` rejects, which is
            distributed as Beta(k, n + 1 - k) over sets of n validation images.
    """

    value: float
    tpr: float
    images: int
    low: float
    high: float
    rejects_low: float
    rejects_high: float


def threshold(scores: np.ndarray, tpr: float = 0.95) -> Threshold:
    """The conformal threshold of in-distribution validation scores [n].

    A score that is NaN, which is rejected, counts as the lowest.

    Raises:
        InputError: a tpr outside (0, 1), fewer images than that tpr takes, or more NaN than it lets be rejected.
    """
    from scipy.stats import beta, binom

    scores = lowest_for_nan(scores)
    n, alpha = len(scores), 1 - tpr
    check_tpr(tpr)
    check_count(n, tpr)
    k = math.floor(alpha * (n + 1) + 1e-9)  # 0.05 * 220 is 10.999...
    tail = (1 - CONFIDENCE) / 2
    low, high = (int(binom.ppf(share, n, alpha)) for share in (tail, 1 - tail))
    rejects = beta.ppf([tail, 1 - tail], k, n + 1 - k)
    ordered = np.sort(scores)
    if not math.isfinite(ordered[k - 1]):
        raise InputError(
            f"{int((~np.isfinite(scores)).sum())} of {n} in-distribution validation scores are not finite: too many"
        )
    return Threshold(
        value=float(ordered[k - 1]),
        tpr=tpr,
        images=n,
        low=float(ordered[low - 1]) if low else -math.inf,
        high=float(ordered[min(high, n - 1)]),
        rejects_low=float(rejects[0]),
        rejects_high=float(rejects[1]),
    )


def check_tpr(tpr: float) -> None:
    """Raise an `InputError` unless it is a share that a threshold can be set for."""
    if not 0 < tpr < 1:
        raise InputError(f"tpr={tpr}: expected a share above 0 and below 1, such as 0.95")


def check_count(images: int, tpr: float) -> None:
    """Raise an `InputError` where a threshold for this tpr takes more validation images."""
    least = math.ceil(1 / (1 - tpr) - 1e-9) - 1
    if images < least:
        raise InputError(
            f"tpr={tpr} takes at least {least} in-distribution images to set the threshold by; there are {images}"
        )


def p_values(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(1 + how many of the validation scores [n] are no higher) / (n + 1), for each of scores [m].

    Of an in-distribution image, P(p <= a) <= a for every a. A score is below ``threshold(reference, tpr).value`` just where
    p <= 1 - tpr, but for the rounding of 1 - tpr. NaN counts as lower than all others.
    """
    ordered = np.sort(lowest_for_nan(reference))
    return (1 + np.searchsorted(ordered, np.where(np.isnan(scores), -np.inf, scores), "right")) / (
        len(ordered) + 1
    )


def scale(reference: np.ndarray, scores: np.ndarray, by: By = "rank") -> np.ndarray:
    """Scores [m] on a scale that scores of different kinds share, by in-distribution validation scores [n]; in their order.

    ``zscore``: their mean 0 and standard deviation 1. ``rank``: the share of them that is lower, from one to the next on a
    straight line; beyond the lowest and the highest it approaches 0 and 1, so that no two scores become equal there (but by
    rounding, very far out). Validation scores that are not finite are left out.
    """
    reference = np.asarray(reference, dtype=np.float64)
    reference = np.sort(reference[np.isfinite(reference)])
    n, scores = len(reference), np.asarray(scores, dtype=np.float64)
    if n == 0:
        raise InputError("there are no finite in-distribution validation scores to calibrate on")
    noise = 1e-9 * max(abs(reference[0]), abs(reference[-1]))  # of scores that should all be equal
    if by == "zscore":
        spread = reference.std()
        return (scores - reference.mean()) / (spread if spread > noise else 1.0)
    knots, last = np.unique(reference, return_index=True)
    heights = (last + np.append(last[1:], n) + 1) / (
        2 * (n + 1)
    )  # equal scores share the mean of their ranks
    within = np.interp(scores, knots, heights)
    spread = reference[math.ceil(0.75 * (n - 1))] - reference[math.floor(0.25 * (n - 1))]
    unit = spread if spread > noise else max(knots[-1] - knots[0], noise, 1e-12)
    below, above = (knots[0] - scores) / unit, (scores - knots[-1]) / unit
    found = np.where(below > 0, heights[0] / (1 + np.maximum(below, 0)), within)
    return np.where(above > 0, 1 - (1 - heights[-1]) / (1 + np.maximum(above, 0)), found)


def lowest_for_nan(scores: np.ndarray) -> np.ndarray:
    """Validation scores, those that are NaN below all others."""
    scores = np.asarray(scores, dtype=np.float64)
    if len(scores) == 0:
        raise InputError("there are no in-distribution validation scores to calibrate on")
    return np.where(np.isnan(scores), -np.inf, scores)
