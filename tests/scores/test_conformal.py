"""Thresholds and p-values keep their promises; scales keep the order of scores."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from diffguard_pl import InputError
from diffguard_pl.scores.conformal import p_values, scale, threshold

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)
some_scores = st.lists(numbers, min_size=19, max_size=120).map(np.array)


@pytest.mark.parametrize(
    ("n", "tpr"),
    [
        (19, "0.95"),
        (50, "0.9"),
        (59, "0.9"),
        (59, "0.95"),
        (215, "0.95"),
        (219, "0.95"),
        (99, "0.99"),
    ],
)
def test_an_in_distribution_image_is_rejected_with_the_promised_probability(n: int, tpr: str):
    """Each of n + 1 exchangeable images is the test image once, so the probability is exact."""
    scores = np.random.default_rng(0).standard_cauchy(n + 1)
    rejected = sum(
        scores[i] < threshold(np.delete(scores, i), float(tpr)).value for i in range(n + 1)
    )
    allowed = 1 - Fraction(tpr)
    assert Fraction(rejected, n + 1) <= allowed
    assert Fraction(rejected + 1, n + 1) > allowed  # and not fewer than can be


def test_the_value_is_an_order_statistic_and_its_intervals_are_those_of_the_textbook():
    scores = np.random.default_rng(1).permutation(np.arange(1, 216)) / 215
    found = threshold(scores, 0.95)
    assert found.value == 10 / 215  # floor(0.05 * 216) = 10
    low, high = binom.ppf([0.025, 0.975], 215, 0.05)
    assert (found.low, found.high) == (low / 215, (high + 1) / 215)
    np.testing.assert_allclose(
        (found.rejects_low, found.rejects_high), beta.ppf([0.025, 0.975], 10, 206)
    )
    assert found.images == 215


def test_intervals_contain_the_truth_in_95_of_100_calibrations():
    generator, trials = np.random.default_rng(2), 2000
    held = np.zeros(2)
    for _ in range(trials):
        # The fraction of uniform scores below a value is the value.
        found = threshold(generator.uniform(size=215), 0.95)
        held += (
            found.low <= 0.05 <= found.high,
            found.rejects_low <= found.value <= found.rejects_high,
        )
    assert (held / trials > 0.93).all()
    assert held[1] / trials < 0.97


@given(some_scores, some_scores)
@settings(max_examples=60, deadline=None)
def test_an_image_is_rejected_where_its_p_value_is_at_most_1_minus_tpr(reference, scores):
    for tpr in (0.95, 0.9):
        rejected = scores < threshold(reference, tpr).value
        assert (rejected == (p_values(reference, scores) <= 1 - tpr + 1e-12)).all()


@pytest.mark.parametrize("n", [19, 40, 99])
def test_p_values_of_in_distribution_images_are_no_smaller_than_chance(n: int):
    scores = np.random.default_rng(3).normal(size=n + 1).round(1)  # with ties
    found = [p_values(np.delete(scores, i), scores[i : i + 1])[0] for i in range(n + 1)]
    for level in (0.05, 0.1, 0.3):
        assert np.mean(np.array(found) <= level + 1e-12) <= level + 1e-12


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
    with pytest.raises(InputError, match="validation scores: none are finite"):
        scale(np.full(3, np.nan), np.array([1.0]))


def test_a_score_that_is_all_but_constant_has_no_scale():
    for noise in (0.0, 1e-17):
        reference = 0.1 + noise * np.arange(101)
        assert abs(scale(reference, np.array([0.1, 0.2]), "zscore")).max() < 1
    assert (np.diff(scale(np.full(50, 0.1), np.array([0.0, 0.1, 0.2]))) > 0).all()


@pytest.mark.parametrize(
    ("scores", "tpr", "message"),
    [
        (
            np.arange(10.0),
            0.95,
            "tpr: 0.95 needs at least 19 .*not 10; use more",
        ),
        (np.arange(18.0), 0.95, "at least 19"),
        (np.arange(98.0), 0.99, "at least 99"),
        (np.arange(50.0), 1.0, "tpr: 1.0 must be above 0"),
        (np.arange(50.0), 95, "tpr: 95 must be"),
        (
            np.array([1.0, np.nan] * 20),
            0.95,
            "validation scores: 20 of 40 are not finite",
        ),
        (np.zeros(0), 0.95, "validation scores: none given; calibrate"),
    ],
)
def test_too_few_or_broken_scores_and_impossible_rates_are_refused(scores, tpr, message):
    with pytest.raises(InputError, match=message):
        threshold(scores, tpr)


def test_the_least_number_of_images_suffices():
    assert threshold(np.arange(19.0), 0.95).value == 0
    assert threshold(np.arange(99.0), 0.99).value == 0
