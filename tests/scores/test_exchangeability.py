"""p-values of a stream are uniform, false alarms are as rare as stated, and a shift is seen."""

import numpy as np
import pytest
from scipy.stats import binom, kstest

from diffguard_pl.errors import InputError
from diffguard_pl.scores.exchangeability import batch_p_value, martingale, online_p_values


def stream(seed: int, shift: float = 0.0, images: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    later = rng.normal(size=images)
    later[images // 2 :] -= shift
    return rng.normal(size=100), later


def test_online_p_values_are_their_definition():
    rng = np.random.default_rng(0)
    # with ties, NaN, and more than a block
    reference, scores = rng.integers(0, 9, 50).astype(float), rng.integers(0, 9, 2500).astype(float)
    scores[[3, 1100]] = np.nan
    found = online_p_values(reference, scores, seed=5)
    u = np.random.default_rng(5).random(len(scores))
    past = list(reference)
    for i, score in enumerate(np.where(np.isnan(scores), -np.inf, scores)):
        lower, equal = sum(s < score for s in past), sum(s == score for s in past)
        assert found[i] == pytest.approx((lower + u[i] * (equal + 1)) / (len(past) + 1))
        past.append(score)


def test_p_values_of_exchangeable_scores_are_uniform():
    p = np.concatenate([online_p_values(*stream(seed)) for seed in range(20)])
    assert kstest(p, "uniform").pvalue > 0.01
    # with the validation scores alone they are not independent: their variance is too large
    assert len(online_p_values(np.arange(5.0), np.zeros(0))) == 0


def test_the_martingale_is_its_definition():
    p = np.random.default_rng(1).random(30)
    capital = dict.fromkeys((-1.0, -0.5, 0.0, 0.5, 1.0), 0.2)
    for i, u in enumerate(p):
        total = sum(capital.values())
        capital = {
            e: (0.99 * c + 0.01 * total / 5) * (1 + e * (u - 0.5)) for e, c in capital.items()
        }
        assert martingale(p)[i] == pytest.approx(np.log10(sum(capital.values())))


def test_false_alarms_are_as_rare_as_stated():
    rate, streams = 0.1, 200
    alarms = sum(
        martingale(online_p_values(*stream(seed))).max() >= -np.log10(rate)
        for seed in range(streams)
    )
    assert alarms <= binom.ppf(0.999, streams, rate)


@pytest.mark.parametrize("shift", [1.5, -1.5])
def test_a_shift_raises_an_alarm_after_it_began(shift: float):
    for seed in range(10):
        capital = martingale(online_p_values(*stream(seed, shift)))
        (at, *_) = np.flatnonzero(capital >= 2)
        assert 200 <= at < 400


def test_a_batch_that_scores_low_has_a_small_p_value():
    reference, later = stream(3)
    assert batch_p_value(reference, later[:50]) > 0.01
    assert batch_p_value(reference, later[:50] - 1) < 1e-6
    assert batch_p_value(reference, later[:50] + 1) > 0.99
    assert batch_p_value(reference, np.full(20, np.nan)) < 1e-6
    with pytest.raises(InputError, match="none given"):
        batch_p_value(reference, [])
