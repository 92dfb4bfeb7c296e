"""The result table: group means, and rows that are undefined."""

import numpy as np
import pytest
from helpers.results import sklearn_metrics

from diffguard_pl import InputError
from diffguard_pl.metrics.table import ScoreTable, never_finite, result_rows, sizes


def test_the_table_holds_every_dataset_the_mean_of_a_group_and_the_average_of_all():
    values = np.random.default_rng(0).normal(size=(110, 2)) * [1, 300]
    members = np.repeat([0, 1, 2, 3], [30, 30, 30, 20])
    groups = {"x": "far", "y": "far", "z": "near"}
    table = ScoreTable(["a", "b"], ["ind", "x", "y", "z"], groups, values, members)
    rows = {(row.group, row.dataset, row.score): row.metrics for row in result_rows(table)}
    places = [("far", "x"), ("far", "y"), ("near", "z"), ("far", "mean"), ("all", "average")]
    assert list(rows) == [(*place, score) for place in places for score in ("a", "b")]
    for k, score in enumerate("ab"):
        ind = values[members == 0, k]
        each = [sklearn_metrics(ind, values[members == d, k]) for d in (1, 2, 3)]
        expected = {
            ("far", "x"): each[0],
            ("far", "mean"): tuple(np.mean(each[:2], axis=0)),
            ("all", "average"): tuple(np.mean(each, axis=0)),  # of datasets, not of images
        }
        for place, metrics in expected.items():
            assert rows[(*place, score)] == pytest.approx(metrics, abs=1e-12)


def test_a_single_dataset_has_no_average():
    table = ScoreTable(["a"], ["ind", "x"], {}, np.array([[1.0], [0.0]]), np.array([0, 1]))
    assert [row.dataset for row in result_rows(table)] == ["x"]


def test_a_nan_score_affects_only_its_own_rows():
    values = np.array([[1.0, 1.0], [0.0, np.nan]])
    table = ScoreTable(["good", "broken"], ["ind", "ood"], {}, values, np.array([0, 1]))
    good, broken = result_rows(table)
    assert good.metrics.auroc == 1
    assert np.isnan(broken.metrics).all()


def test_a_score_that_is_never_finite_is_named_with_its_datasets():
    values = np.array([[1.0, np.nan, np.inf], [np.nan, np.nan, 0.0], [1.0, -np.inf, -np.inf]])
    table = ScoreTable(["a", "b", "c"], ["ind", "ood", "none"], {}, values, np.array([0, 0, 1]))
    assert never_finite(table) == {"b": ["ind", "ood"], "c": ["ood"]}


def test_an_empty_dataset_has_nan_metrics_and_does_not_affect_the_others():
    groups = {"letters": "far", "photos": "far"}
    table = ScoreTable(
        ["a"], ["digits", "letters", "photos"], groups, np.array([[1.0], [0.0]]), np.array([0, 2])
    )
    letters, photos, mean, average = result_rows(table)
    assert np.isnan(letters.metrics).all()
    assert photos.metrics.auroc == 1
    assert np.isnan([mean.metrics, average.metrics]).all()
    assert sizes(table) == {"digits": 1, "letters": 0, "photos": 1}


def test_a_table_without_in_distribution_scores_is_refused():
    table = ScoreTable(["a"], ["digits", "letters"], {}, np.array([[1.0]]), np.array([1]))
    with pytest.raises(InputError, match="in-distribution dataset digits"):
        result_rows(table)


def test_full_spectrum_rows_pool_covariate_shifted_images_with_the_in_distribution_ones():
    values = np.random.default_rng(0).normal(size=(100, 1)) - np.repeat([0, 1, 2, 3], 25)[:, None]
    members = np.repeat([0, 1, 2, 3], 25)
    groups = {"r": "csid", "x": "near", "y": "near"}
    table = ScoreTable(["a"], ["ind", "r", "x", "y"], groups, values, members)
    rows = {(row.group, row.dataset): row for row in result_rows(table)}
    names = [("near", "x"), ("near", "y"), ("near", "mean"), ("all", "average")]
    assert list(rows) == [(prefix + g, name) for prefix in ("", "fsood_") for g, name in names]
    for prefix, ind in {"": [0], "fsood_": [0, 1]}.items():
        pooled = values[np.isin(members, ind), 0]
        each = [sklearn_metrics(pooled, values[members == d, 0]) for d in (2, 3)]
        assert rows[f"{prefix}near", "x"].metrics == pytest.approx(each[0], abs=1e-12)
        mean = tuple(np.mean(each, axis=0))
        assert rows[f"{prefix}near", "mean"].metrics == pytest.approx(mean, abs=1e-12)
        assert rows[f"{prefix}all", "average"].metrics == pytest.approx(mean, abs=1e-12)
    tags = ["x", "y", "near", "average"]
    assert [row.tag for row in rows.values()] == [*tags, *(f"fsood_{tag}" for tag in tags)]
