"""ReAct, ASH and SCALE equal their definitions in float64 NumPy, and pytorch-ood's."""

import numpy as np
import pytest
import torch
from helpers.baselines import IMAGES, assert_close, scores_of
from pytorch_ood import detector as theirs
from scipy.special import logsumexp
from torch.nn.functional import linear

from diffguard_pl import Classifier
from diffguard_pl.classifiers.classifier import View
from diffguard_pl.scores.baselines.collection import Baselines

# X: training features, x: features, W, b: the last layer; all in float64.


def kept(x: np.ndarray, percent: float) -> np.ndarray:
    """Return which features of each image are among those above the percentile."""
    count = x.shape[1] - round(x.shape[1] * percent / 100)
    largest = np.argsort(-x, axis=1, kind="stable")[:, :count]
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, largest, True, axis=1)
    return mask


def react(X, x, W, b):
    return logsumexp(np.minimum(x, np.percentile(X, 90)) @ W.T + b, axis=1)


def ash(X, x, W, b):
    mask = kept(x, 90)
    return logsumexp(mask * (x.sum(1) / mask.sum(1))[:, None] @ W.T + b, axis=1)


def scale(X, x, W, b):
    ratio = x.sum(1) / (x * kept(x, 85)).sum(1)
    return logsumexp(x * np.exp(ratio)[:, None] @ W.T + b, axis=1)


@pytest.mark.parametrize("definition", [react, ash, scale])
def test_score_equals_its_definition(
    definition, classifier: Classifier, fitted: Baselines, train: View, view: View
):
    W, b = (part.double().numpy() for part in classifier.linear_head())
    expected = definition(train.features.double().numpy(), view.features.double().numpy(), W, b)
    assert_close(fitted(view, IMAGES)[definition.__name__], expected)


def test_scores_are_pytorch_oods(classifier: Classifier, fitted: Baselines, view: View):
    def head(maps: torch.Tensor) -> torch.Tensor:
        return linear(maps.flatten(1), *classifier.linear_head())

    scores, maps = fitted(view, IMAGES), view.features[:, :, None, None]
    width = view.features.shape[1]
    pruned = {
        "react": theirs.ReAct(None, head, threshold=fitted.react_threshold),
        "ash": theirs.ASH(None, head, "ash-b", round(width * 0.90) / width),
        "scale": theirs.SCALE(None, head, round(width * 0.85) / width),
    }
    for name, detector in pruned.items():
        torch.testing.assert_close(scores[name], -detector.predict_feature_maps(maps))


def test_scale_leaves_features_alone_that_have_no_finite_scale(fitted: Baselines):
    nothing = torch.zeros(128)
    hardly_negative = torch.cat([torch.full((100,), -100.0), torch.full((28,), -1e-3)])
    scores = scores_of(fitted, torch.stack([nothing, hardly_negative]))
    assert torch.equal(scores["scale"], scores["energy"])
