"""Bootstrap intervals equal naive resampling, and have the coverage they state."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from diffguard_pl.metrics.bootstrap import intervals, replicates
from diffguard_pl.metrics.detection import detection_metrics
from diffguard_pl.metrics.table import ScoreTable


def table_of(*datasets: np.ndarray, groups: dict[str, str] | None = None) -> ScoreTable:
    """Build a table of scores [n, K] of datasets ind, ood1, ood2, ..., by scores s0, s1, ..."""
    names = ["ind", *(f"ood{d}" for d in range(1, len(datasets)))]
    members = np.repeat(np.arange(len(datasets)), [len(values) for values in datasets])
    scores = [f"s{k}" for k in range(datasets[0].shape[1])]
    return ScoreTable(scores, names, groups or {}, np.concatenate(datasets), members)


def test_a_replicate_equals_the_metrics_of_the_drawn_images():
    generator = np.random.default_rng(1)
    # Rounded, so that there are many ties.
    sizes = (41, 30, 20, 15)
    datasets = [generator.normal(-d, size=(n, 2)).round(1) for d, n in enumerate(sizes)]
    table = table_of(*datasets, groups={"ood1": "near", "ood2": "near", "ood3": "far"})
    drawn = replicates(table, resamples=30, seed=5)
    again = np.random.default_rng(5)
    for r in range(30):
        ind, *oods = [values[again.integers(len(values), size=len(values))] for values in datasets]
        for k, score in enumerate(table.scores):
            expected = [detection_metrics(ind[:, k], ood[:, k])[:2] for ood in oods]
            for d, name in enumerate(table.datasets[1:]):
                found = drawn[table.groups[name], name, score][r]
                assert found == pytest.approx(expected[d], abs=1e-12)
            near, average = np.mean(expected[:2], axis=0), np.mean(expected, axis=0)
            assert drawn["near", "mean", score][r] == pytest.approx(near, abs=1e-12)
            assert drawn["all", "average", score][r] == pytest.approx(average, abs=1e-12)


def test_intervals_contain_the_true_auroc_95_percent_of_the_time():
    """Of two normal distributions one apart the true AUROC is known."""
    generator, true, contained = np.random.default_rng(2), norm.cdf(1 / math.sqrt(2)), 0
    for _ in range(200):
        table = table_of(generator.normal(size=(80, 1)), generator.normal(-1, size=(80, 1)))
        low, high = intervals(replicates(table, resamples=200)["ood1", "ood1", "s0"])["auroc"]
        contained += low <= true <= high
    assert 0.90 <= contained / 200 <= 0.99


def test_an_empty_dataset_or_nan_has_no_interval_and_does_not_affect_the_others():
    table = table_of(np.zeros((4, 1)), np.full((3, 1), np.nan), np.zeros((0, 1)), -np.ones((3, 1)))
    drawn = replicates(table, resamples=5)
    assert np.isnan(drawn["ood1", "ood1", "s0"]).all()
    assert np.isnan(drawn["ood2", "ood2", "s0"]).all()
    assert (drawn["ood3", "ood3", "s0"] == [1, 0]).all()


def test_a_full_spectrum_replicate_pools_the_draws_of_both_in_distribution_datasets():
    generator = np.random.default_rng(3)
    datasets = [generator.normal(-d, size=(n, 1)).round(1) for d, n in enumerate((31, 20, 17))]
    table = table_of(*datasets, groups={"ood1": "csid", "ood2": "far"})
    drawn = replicates(table, resamples=5, seed=7)
    rows = [("far", "ood2"), ("far", "mean"), ("all", "average")]
    expected = [(prefix + group, name, "s0") for prefix in ("", "fsood_") for group, name in rows]
    assert list(drawn) == expected
    again = np.random.default_rng(7)
    for r in range(5):
        ind, shifted, ood = (
            values[again.integers(len(values), size=len(values)), 0] for values in datasets
        )
        plain = detection_metrics(ind, ood)[:2]
        pooled = detection_metrics(np.concatenate([ind, shifted]), ood)[:2]
        assert drawn["far", "ood2", "s0"][r] == pytest.approx(plain, abs=1e-12)
        assert drawn["fsood_far", "ood2", "s0"][r] == pytest.approx(pooled, abs=1e-12)
