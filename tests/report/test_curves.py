"""ROC curves and histograms as numbers."""

import numpy as np
import pytest

from diffguard_pl.metrics.detection import detection_metrics
from diffguard_pl.metrics.table import ScoreTable
from diffguard_pl.report.curves import histograms, roc


def test_a_thinned_roc_curve_keeps_its_ends_and_its_area():
    generator = np.random.default_rng(4)
    ind, ood = generator.normal(size=5000), generator.normal(-1, size=5000)
    x, y = roc(ind, ood)
    assert len(x) <= 300
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    area = (np.diff(x) * (y[1:] + y[:-1]) / 2).sum()
    assert area == pytest.approx(detection_metrics(ind, ood).auroc, abs=1e-3)


def test_histograms_share_their_edges_and_put_outliers_into_the_outermost_bins():
    generator = np.random.default_rng(5)
    ind, ood = generator.normal(size=(1000, 1)), generator.normal(-1, size=(1000, 1))
    ood[0], ood[1] = -1e6, np.nan
    members = np.repeat([0, 1], 1000)
    table = ScoreTable(["s"], ["ind", "ood"], {}, np.concatenate([ind, ood]), members)
    edges, fractions = histograms(table, 0)
    assert -6 < edges[0] < edges[-1] < 6, "the outlier does not squeeze the other scores"
    assert [of_dataset.sum() for of_dataset in fractions] == pytest.approx([1, 1])
