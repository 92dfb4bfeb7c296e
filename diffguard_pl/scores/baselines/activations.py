"""Baselines that shape the features x [N, D] and take the energy of the logits W x + b.

All need a classifier whose logits are linear in its features.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError
from ..hyperparameters import parameter
from .base import Baseline, Inputs, TrainingFeatures
from .statistics import percentile


@dataclass(frozen=True)
class ReAct(Baseline):
    """Energy of clipped features: log sum_k exp((W min(x, c) + b)_k) (Sun et al., NeurIPS 2021).

    c is a percentile of all training features. OpenOOD takes it over its validation images.

    Args:
        percentile: Percentile, 0 to 100. Defaults to 90.
    """

    name = "react"
    needs = frozenset({"features", "head", "training features"})
    tensors = ("react_percentile", "react_threshold")
    percentile: float = parameter(90.0, lambda value: 0 <= value <= 100, "0 to 100")

    def fit(self, training: TrainingFeatures) -> dict[str, Tensor]:
        return {
            "react_percentile": torch.tensor(float(self.percentile)),
            "react_threshold": percentile(training.features, self.percentile),
        }

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        # Clipping at c cuts the abnormally large activations of unknown images.
        return inputs.energy_of(inputs.features.clip(max=fitted["react_threshold"]))

    def check_fitted(self, fitted: Mapping[str, Tensor]) -> None:
        fitted_with = float(fitted["react_percentile"])
        if not math.isclose(fitted_with, self.percentile, rel_tol=1e-6):
            raise InputError(
                f"baselines: react: percentile={self.percentile:g} differs from the fitted "
                f"{fitted_with:g}; set that value, or fit again"
            )


@dataclass(frozen=True)
class _Pruning(Baseline):
    """Baseline that keeps the largest features of an image."""

    needs = frozenset({"features", "head"})
    percentile: float

    def for_width(self, width: int) -> "_Pruning":
        if self.kept(width) == 0:
            raise InputError(
                f"baselines: {self.name}: percentile={self.percentile} prunes all {width} "
                "features; set a lower one"
            )
        return self

    def kept(self, width: int) -> int:
        """Return how many of D features are kept, rounded as OpenOOD does."""
        return width - round(width * self.percentile / 100)


@dataclass(frozen=True)
class ASH(_Pruning):
    """Energy of binarised features, ASH-B (Djurisic et al., ICLR 2023).

    The k largest features of an image are set to (sum of all its features) / k, the others to 0.

    Args:
        percentile: Percentage of features that are pruned, below 100. Defaults to 90.
    """

    name = "ash"
    percentile: float = parameter(90.0, lambda value: 0 <= value < 100, "0 or more, below 100")

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        x = inputs.features
        # The k largest share the sum of all features equally.
        k = self.kept(x.shape[1])
        largest = x.topk(k, dim=1).indices
        level = (x.sum(dim=1, keepdim=True) / k).expand(-1, k)
        return inputs.energy_of(torch.zeros_like(x).scatter(1, largest, level))


@dataclass(frozen=True)
class SCALE(_Pruning):
    """Energy of scaled features x exp(s_1 / s_2) (Xu et al., ICLR 2024).

    s_1 is the sum of all features of an image, s_2 the sum of its k largest.

    Args:
        percentile: Percentage of features left out of s_2, below 100. Defaults to 85.
    """

    name = "scale"
    needs = frozenset({"logits", "features", "head"})
    percentile: float = parameter(85.0, lambda value: 0 <= value < 100, "0 or more, below 100")

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        x = inputs.features
        # s_1 / s_2: the more concentrated the features, the closer to 1.
        largest = x.topk(self.kept(x.shape[1]), dim=1).values
        ratio = x.sum(dim=1, keepdim=True) / largest.sum(dim=1, keepdim=True)
        score = inputs.energy_of(x * ratio.exp())
        # Features that are all zero or negative may have no finite scale: they stay unscaled.
        return torch.where(score.isfinite(), score, inputs.logits.logsumexp(dim=1))
