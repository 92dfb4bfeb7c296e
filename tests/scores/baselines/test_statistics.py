"""Statistics read in chunks equal NumPy's of the whole."""

import numpy as np
import pytest
import torch
from torch import Tensor

from diffguard_pl.scores.baselines import statistics
from diffguard_pl.scores.baselines.statistics import Moments, percentile, whiten


@pytest.mark.parametrize("percent", [0, 12.5, 33.3, 50, 90, 99.99, 100])
@pytest.mark.parametrize(
    "values",
    [
        torch.randn(300, 70),
        torch.rand(3, 7) - 1,
        torch.zeros(4, 4),
        torch.randn(300, 70).half().relu(),
    ],
    ids=["normal", "negative", "zeros", "half"],
)
def test_percentile_is_numpys(values: Tensor, percent: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "CHUNK", 128)
    expected = np.percentile(values.double().numpy(), percent)
    assert percentile(values, percent).item() == pytest.approx(expected, rel=1e-6)


def test_moments_are_numpys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "CHUNK", 7)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(50) % 3
    moments = Moments.of(x, labels, torch.device("cpu"))
    centred = [x[labels == c].numpy() - x[labels == c].numpy().mean(0) for c in range(3)]
    np.testing.assert_allclose(moments.within, sum(c.T @ c for c in centred), atol=1e-12)
    np.testing.assert_allclose(moments.total(), 50 * np.cov(x.T.numpy(), bias=True), atol=1e-12)
    assert moments.counts.tolist() == [17, 17, 16]


def test_whitening_of_a_singular_covariance_gives_the_pseudo_inverse():
    x = np.random.default_rng(0).standard_normal((20, 3)) @ np.ones((3, 5))
    covariance = np.cov(x.T)
    found = whiten(torch.from_numpy(covariance))
    assert found.shape == (5, 1)
    np.testing.assert_allclose(found @ found.T, np.linalg.pinv(covariance, rcond=1e-10), atol=1e-12)
