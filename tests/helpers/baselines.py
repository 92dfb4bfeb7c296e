"""The digits and photos on which baselines are tested."""

import numpy as np
import torch
from torch import Tensor

from diffguard_pl import Classifier
from diffguard_pl.classifiers.classifier import View
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.digits import digits, photos
from diffguard_pl.scores.baselines.collection import Baselines
from diffguard_pl.scores.baselines.names import BASELINES

SINGLE = [name for name in BASELINES if name != "ensemble"]
"""The baselines of a single classifier."""
TRAIN = digits("train")
LABELS = torch.tensor(TRAIN.labels)
IMAGES = torch.cat([digits("test").images[:40], photos(40).images])


def digits_classifier() -> Classifier:
    half = (0.5, 0.5, 0.5)
    return Classifier(SmallResNet(), "digits_classifier", input_size=16, mean=half, std=half)


def scores_of(module: Baselines, features: Tensor) -> dict[str, Tensor]:
    """Compute the scores of features that need not be those of an image."""
    weight, bias = module._classifier[0].linear_head()
    view = View(features @ weight.T + bias, features, [])
    return module(view, torch.full((len(features), 3, 16, 16), 0.5))


def assert_close(
    score: Tensor, expected: np.ndarray, rtol: float = 2e-5, atol: float = 2e-5
) -> None:
    assert score.dtype == torch.float32
    np.testing.assert_allclose(score.numpy(), expected, rtol=rtol, atol=atol)
