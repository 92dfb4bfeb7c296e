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
    datasets = [generator.normal(-d, size=(n, 2)).round(1) for d, n in enumerate((41, 30, 20))]
    table = table_of(*datasets, groups={"ood1": "near", "ood2": "near"})
    drawn = replicates(table, resamples=30, seed=5)
    again = np.random.default_rng(5)
    for r in range(30):
        ind, *oods = [values[again.integers(len(values), size=len(values))] for values in datasets]
        for k, score in enumerate(table.scores):
            expected = [detection_metrics(ind[:, k], ood[:, k])[:2] for ood in oods]
            for d, name in enumerate(table.datasets[1:]):
                assert drawn["near", name, score][r] == pytest.approx(expected[d], abs=1e-12)
            mean = np.mean(expected, axis=0)
            assert drawn["near", "mean", score][r] == pytest.approx(mean, abs=1e-12)


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
