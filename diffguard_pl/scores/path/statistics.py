"""Path scores of the statistics of eps at the first K inversion steps, without a label.

They cost no evaluation more: DiffGuard's own inversion has predicted the noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...diffusion.path import Path
from ...errors import InputError
from ..hyperparameters import count, positive
from .base import PathScore
from .density import (
    MIXTURE,
    complete_rows,
    fit_mixture,
    kernel_log_density,
    mixture_log_density,
)


@dataclass(frozen=True)
class _FirstSteps(PathScore):
    """A score of the first K inversion steps."""

    steps: int | None = count(None)

    least_steps: ClassVar[int] = 1

    def for_schedule(self, timesteps: Tensor, inversion_steps: int, train_steps: int) -> PathScore:
        steps = self.steps or inversion_steps
        if not self.least_steps <= steps <= inversion_steps:
            raise InputError(
                f"path_scores: {self.name}: steps={steps} must be {self.least_steps} to "
                f"{inversion_steps}, the number of inversion steps"
            )
        return replace(self, steps=steps)

    @property
    def path_steps(self) -> int:
        return self.steps or 0


@dataclass(frozen=True)
class _Mixture(_FirstSteps):
    """Log-density of the features under a Gaussian mixture."""

    components: int | None = count(None)

    @property
    def tensors(self) -> tuple[str, ...]:
        return MIXTURE

    def fit(self, features: Tensor) -> dict[str, Tensor]:
        return fit_mixture(features, self.components, self.name)

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return mixture_log_density(features, fitted)


@dataclass(frozen=True)
class DiffPath(_Mixture):
    """DiffPath-6D: log-density of six sums over the path (Heng et al., NeurIPS 2024).

    With d_k = K (eps_k+1 - eps_k), the features are the sums over steps and values of eps, eps^2,
    eps^3, d, d^2, d^3. The original inverts in 10 steps of its own, all with x0hat clamped to
    [-1, 1]; DiffGuard's inversion does not clamp at the first.

    Args:
        steps: Number K of first inversion steps, 2 or more. Defaults to all.
        components: Number of components of the mixture. Defaults to a choice by cross-validation
            of 1 to 100.
    """

    name = "diffpath"
    least_steps = 2

    def features(self, path: Path) -> Tensor:
        sums = []
        for name in ("eps", "eps2", "eps3"):
            sums.append(path.inversion(name)[:, : self.path_steps].sum(dim=1))
        for power, name in enumerate(("change", "change2", "change3"), start=1):
            changes = path.inversion(name)[:, 1 : self.path_steps].sum(dim=1)
            sums.append(self.path_steps**power * changes)
        return path.size * torch.stack(sums, dim=1)


@dataclass(frozen=True)
class DiffPath1D(_FirstSteps):
    """DiffPath-1D: log kernel density of the length of the path (Heng et al., NeurIPS 2024).

    The feature is sqrt(sum_k |d_k|^2), see :class:`DiffPath`.

    Args:
        steps: Number K of first inversion steps, 2 or more. Defaults to all.
        bandwidth: Standard deviation of the Gaussian kernel. Defaults to the original's 5.
    """

    name = "diffpath_1d"
    least_steps = 2
    bandwidth: float = positive(5.0)

    @property
    def tensors(self) -> tuple[str, ...]:
        return ("points",)

    def features(self, path: Path) -> Tensor:
        squared = path.inversion("change2")[:, 1 : self.path_steps].sum(dim=1)
        return (self.path_steps * (path.size * squared).sqrt())[:, None]

    def fit(self, features: Tensor) -> dict[str, Tensor]:
        return {"points": complete_rows(features, self.name)}

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return kernel_log_density(features, fitted["points"], self.bandwidth)


@dataclass(frozen=True)
class MSMA(_Mixture):
    """MSMA: log-density of the norm of eps at several noise levels (Mahmood et al., ICLR 2021).

    The states and levels are those of the first K inversion steps. The original evaluates the clean
    image at each of 10 noise levels of its training, which DiffGuard's inversion does not.

    Args:
        steps: Number K of first inversion steps. Defaults to all.
        components: Number of components of the mixture. Defaults to a choice by cross-validation
            of 1 to 100.
    """

    name = "msma"

    def features(self, path: Path) -> Tensor:
        return (path.size * path.inversion("eps2")[:, : self.path_steps]).sqrt()
