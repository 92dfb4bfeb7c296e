"""Do later images come from the same distribution as the validation images? Tests on their scores.

No out-of-distribution image is used, and nothing is assumed of the scores: if validation images and
later ones are exchangeable, all that follows is exact for any score and any number of images.
"""

from collections.abc import Sequence

import numpy as np

from .conformal import lowest_for_nan

BETS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Slopes of the bets of :func:`martingale`: below 0 on low p-values, above 0 on high ones."""
JUMP = 0.01
"""Share of the capital that each bet gives to all of them at each step."""
BLOCK = 1000


def online_p_values(reference: np.ndarray, scores: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the p-value of each score among all before it, [m] in (0, 1).

    p = (number of lower ones + u (1 + number of equal ones)) / (1 + number of all), where u is
    uniform. If all scores are exchangeable, these are independent and uniform (Vovk et al. 2005),
    unlike p-values that are computed with the validation scores alone.

    Args:
        reference: Validation scores [n]; NaN counts as the lowest.
        scores: Later scores [m] in their order; NaN counts as the lowest.
        seed: Seed of u.
    """
    past = np.sort(lowest_for_nan(reference))
    if len(scores) == 0:
        return np.zeros(0)
    scores = lowest_for_nan(scores)
    uniform = np.random.default_rng(seed).random(len(scores))
    found = np.empty(len(scores))
    for start in range(0, len(scores), BLOCK):
        block = scores[start : start + BLOCK]
        # Those before it: of earlier blocks, and of this one.
        lower = np.searchsorted(past, block, "left").astype(float)
        equal = np.searchsorted(past, block, "right") - lower
        earlier = np.tri(len(block), k=-1, dtype=bool)
        lower += (earlier & (block[None, :] < block[:, None])).sum(axis=1)
        equal += (earlier & (block[None, :] == block[:, None])).sum(axis=1)
        total = len(past) + np.arange(len(block)) + 1
        of_block = slice(start, start + len(block))
        found[of_block] = (lower + uniform[of_block] * (equal + 1)) / total
        past = np.sort(np.concatenate([past, block]), kind="stable")
    return found


def martingale(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the logarithm, base 10, of a conformal test martingale after each p-value, [m].

    It is the capital of one who bets, from 1 on, that p-values are not uniform: the composite
    jumper of Vovk et al. (COPA 2021, algorithm 1). If they are, it exceeds 1 / a at any time with
    a probability of at most a (Ville's inequality), however long one watches.

    Args:
        p_values: p-values [m] in [0, 1], in their order.
    """
    slopes = np.array(BETS)
    capital: np.ndarray = np.full(len(slopes), 1 / len(slopes))
    # The capital is kept at 1, and its logarithm beside it, so that it cannot overflow.
    logarithm, found = 0.0, np.empty(len(p_values))
    for i, p in enumerate(p_values):
        capital = (1 - JUMP) * capital + JUMP / len(slopes)
        capital = capital * (1 + slopes * (p - 0.5))
        total = capital.sum()
        logarithm += np.log10(total)
        capital /= total
        found[i] = logarithm
    return found


def batch_p_value(reference: np.ndarray, scores: np.ndarray) -> float:
    """Return the p-value of a batch: probability that in-distribution batches score so low.

    The one-sided rank-sum test of Mann and Whitney between the scores of the batch and of the
    validation images. A shift that moves scores up, or only some of them, can escape it.

    Args:
        reference: Validation scores [n]; NaN counts as the lowest.
        scores: Scores of the batch [m], 1 or more; NaN counts as the lowest.
    """
    from scipy.stats import mannwhitneyu

    given = (lowest_for_nan(scores), lowest_for_nan(reference))
    return float(mannwhitneyu(*given, alternative="less").pvalue)
