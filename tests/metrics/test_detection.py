"""Detection metrics agree with scikit-learn for any real scores."""

import subprocess
import sys

import numpy as np
import pytest
from helpers.results import sklearn_metrics
from hypothesis import given
from hypothesis import strategies as st

from diffguard_pl import InputError
from diffguard_pl.metrics.detection import (
    aupr,
    auroc,
    detection_metrics,
    fpr_at_tpr,
    rejected_at_tpr,
    threshold_at_tpr,
)

scores = st.lists(st.floats(-600, 600) | st.integers(-3, 3).map(float), min_size=1, max_size=40)


@given(scores, scores)
def test_metrics_are_scikit_learns(ind, ood):
    expected = sklearn_metrics(np.array(ind), np.array(ood))
    assert detection_metrics(ind, ood) == pytest.approx(expected, abs=1e-12)


@given(scores, scores, st.floats(0.1, 10))
def test_only_the_order_of_scores_counts(ind, ood, scale):
    distinct = sorted({*ind, *ood})

    def ranks(values):
        return np.array([scale * distinct.index(value) for value in values])

    assert detection_metrics(ind, ood) == detection_metrics(ranks(ind), ranks(ood))


@given(scores, scores)
def test_swapping_the_datasets_mirrors_auroc(ind, ood):
    assert auroc(ind, ood) == pytest.approx(1 - auroc(ood, ind), abs=1e-12)


def test_perfect_useless_and_inverted_scores():
    high, low = [3.0, 4.0], [1.0, 2.0]
    assert detection_metrics(high, low) == (1, 0, 1, 1, 0)
    assert auroc(low, high) == 0
    assert fpr_at_tpr(low, high) == 1
    assert auroc([1.0] * 5, [1.0] * 7) == 0.5


@given(scores, st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_the_threshold_is_the_highest_that_enough_scores_reach(positive, tpr):
    found = threshold_at_tpr(positive, tpr)
    expected = max(v for v in positive if np.mean(np.array(positive) >= v) >= tpr)
    assert found == expected


def test_the_threshold_leaves_out_nan():
    assert threshold_at_tpr([np.nan, *range(100)]) == 5
    assert np.isnan(threshold_at_tpr([np.nan]))


@pytest.mark.parametrize("count", [1, 7, 19, 20, 21, 39, 40, 100, 220, 1001])
def test_as_many_as_possible_are_rejected(count):
    rejected = rejected_at_tpr(count)
    assert (count - rejected) / count >= 0.95 > (count - rejected - 1) / count


@pytest.mark.parametrize("metric", [auroc, aupr, fpr_at_tpr])
def test_scores_of_one_kind_only_or_nan_are_refused(metric):
    with pytest.raises(InputError, match="none of out-of-distribution"):
        metric([1.0], [])
    with pytest.raises(InputError, match="1 of 3 scores are NaN"):
        metric([1.0, float("nan")], [0.0])


def test_metrics_tables_and_intervals_do_not_import_torch():
    modules = "detection", "table", "bootstrap"
    program = "".join(f"import diffguard_pl.metrics.{name}\n" for name in modules)
    program += "import sys; assert not {'torch', 'scipy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
