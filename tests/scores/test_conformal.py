"""Thresholds and p-values keep their promises; scores of different kinds come to one scale."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from diffguard_pl import InputError
from diffguard_pl.scores.conformal import p_values, scale, threshold

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)
some_scores = st.lists(numbers, min_size=19, max_size=120).map(np.array)


@pytest.mark.parametrize(("n", "tpr"), [(19, 0.95), (50, 0.9), (215, 0.95), (99, 0.99)])
def test_an_in_distribution_image_is_rejected_with_at_most_the_chance_that_was_promised(n, tpr):
    generator = np.random.default_rng(0)
    trials, rejected = 20_000, 0
    drawn = generator.standard_cauchy((trials, n + 1))
    for scores in drawn:
        rejected += scores[-1] < threshold_value(scores[:-1], tpr)
    k = math.floor((1 - tpr) * (n + 1) + 1e-9)
    expected = k / (n + 1)  # exactly, for scores without ties
    assert expected <= 1 - tpr + 1e-12
    assert abs(rejected / trials - expected) < 4 * math.sqrt(expected * (1 - expected) / trials)


def threshold_value(scores: np.ndarray, tpr: float) -> float:
    """What `threshold` gives as its value, fast."""
    return np.sort(scores)[math.floor((1 - tpr) * (len(scores) + 1) + 1e-9) - 1]


def test_the_value_is_the_order_statistic_and_its_intervals_are_those_of_the_textbook():
    scores = np.random.default_rng(1).permutation(np.arange(1, 216)) / 215
    found = threshold(scores, 0.95)
    assert found.value == threshold_value(scores, 0.95) == 10 / 215  # floor(0.05 * 216) = 10
    low, high = binom.ppf([0.025, 0.975], 215, 0.05)
    assert (found.low, found.high) == (low / 215, (high + 1) / 215)
    np.testing.assert_allclose(
        (found.rejects_low, found.rejects_high), beta.ppf([0.025, 0.975], 10, 206)
    )
    assert found.images == 215


def test_intervals_hold_what_they_are_of_in_95_of_100_calibrations():
    generator, trials = np.random.default_rng(2), 2000
    held = np.zeros(2)
    for _ in range(trials):
        found = threshold(
            generator.uniform(size=215), 0.95
        )  # a uniform score rejects just its value's share
        held += (
            found.low <= 0.05 <= found.high,
            found.rejects_low <= found.value <= found.rejects_high,
        )
    assert (held / trials > 0.93).all()
    assert held[1] / trials < 0.97


@given(some_scores, some_scores)
@settings(max_examples=60, deadline=None)
def test_an_image_is_rejected_just_where_its_p_value_is_at_most_1_less_tpr(reference, scores):
    for tpr in (0.95, 0.9):
        rejected = scores < threshold(reference, tpr).value
        assert (rejected == (p_values(reference, scores) <= 1 - tpr + 1e-12)).all()


def test_p_values_of_in_distribution_images_are_no_smaller_than_chance():
    generator = np.random.default_rng(3)
    found = np.concatenate(
        [p_values(generator.normal(size=40), generator.normal(size=1)) for _ in range(8000)]
    )
    for level in (0.05, 0.1, 0.3):
        assert (found <= level).mean() <= level + 4 * math.sqrt(level / 8000)


@given(
    some_scores,
    st.lists(numbers, min_size=2, max_size=40).map(np.array),
    st.sampled_from(["rank", "zscore"]),
)
@settings(max_examples=100, deadline=None)
def test_a_scale_keeps_the_order(reference, scores, by):
    found = scale(reference, scores, by)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(found[order]) >= -1e-12).all()
    if by == "rank":
        assert ((found > 0) & (found <= 1)).all()  # 1 by rounding
        assert (found[scores <= reference.max()] < 1).all()


def test_ranks_of_the_validation_scores_are_even_and_no_two_outside_are_equal():
    reference = np.random.default_rng(4).normal(size=99)
    np.testing.assert_allclose(np.sort(scale(reference, reference)), np.arange(1, 100) / 100)
    outside = scale(reference, np.array([-1000.0, -100.0, -10.0, 10.0, 100.0, 1000.0]))
    assert (np.diff(outside) > 0).all()
    assert outside[2] < 0.01 < 0.99 < outside[3]


def test_equal_validation_scores_share_a_rank():
    assert scale(np.array([0.0, 1.0, 1.0, 1.0, 2.0]), np.array([1.0])) == pytest.approx(0.5)
    assert scale(np.ones(5), np.array([0.5, 1.0, 1.5])) == pytest.approx([0, 0.5, 1], abs=1e-6)


def test_zscores_have_mean_0_and_deviation_1():
    reference = np.random.default_rng(5).normal(3, 7, size=400)
    found = scale(reference, reference, "zscore")
    assert (found.mean(), found.std()) == pytest.approx((0, 1))


def test_nan_is_rejected_and_counts_as_the_lowest():
    reference = np.append(np.arange(1.0, 99.0), np.nan)
    assert threshold(reference, 0.95).value == 4  # the fifth of 99, NaN the first
    assert p_values(reference, np.array([np.nan, 0.5, 1.0])).tolist() == [0.02, 0.02, 0.03]
    for by in ("rank", "zscore"):
        assert np.isnan(scale(reference, np.array([np.nan]), by)).all()
        np.testing.assert_array_equal(
            scale(reference, np.array([7.0]), by), scale(reference[:-1], np.array([7.0]), by)
        )
    with pytest.raises(InputError, match="there are no finite in-distribution validation scores"):
        scale(np.full(3, np.nan), np.array([1.0]))


def test_a_score_that_is_all_but_constant_has_no_scale():
    for noise in (0.0, 1e-17):
        reference = 0.1 + noise * np.arange(101)
        assert abs(scale(reference, np.array([0.1, 0.2]), "zscore")).max() < 1
    assert (np.diff(scale(np.full(50, 0.1), np.array([0.0, 0.1, 0.2]))) > 0).all()


@pytest.mark.parametrize(
    ("scores", "tpr", "said"),
    [
        (
            np.arange(10.0),
            0.95,
            "tpr=0.95 takes at least 19 in-distribution images to set the threshold by; there are 10",
        ),
        (np.arange(18.0), 0.95, "at least 19"),
        (np.arange(98.0), 0.99, "at least 99"),
        (np.arange(50.0), 1.0, "tpr=1.0: expected a share above 0 and below 1"),
        (np.arange(50.0), 95, "tpr=95: expected a share"),
        (
            np.array([1.0, np.nan] * 20),
            0.95,
            "20 of 40 in-distribution validation scores are not finite: too many",
        ),
        (np.zeros(0), 0.95, "there are no in-distribution validation scores"),
    ],
)
def test_what_a_threshold_cannot_be_set_by(scores, tpr, said):
    with pytest.raises(InputError, match=said):
        threshold(scores, tpr)


def test_just_enough_images():
    assert threshold(np.arange(19.0), 0.95).value == 0
    assert threshold(np.arange(99.0), 0.99).value == 0
