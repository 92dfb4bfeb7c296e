"""GEPC: whether the predicted noise of a flipped image is the flipped noise of the image."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..hyperparameters import parameter
from .base import MeasuredScore, Subject
from .density import KERNELS, fit_kernels, kernel_log_densities

FLIPS = ((-1,), (-2,), (-2, -1))
"""Axes of the horizontal flip, the vertical flip, and the rotation by 180 degrees."""
FLOOR = 1e-6
"""Keeps the gap finite where the noise is zero."""


@dataclass(frozen=True)
class GEPC(MeasuredScore):
    """GEPC: gap of equivariance of the noise under flips (ICML 2026).

    At each level, gap = mean over g of mean (g^-1 eps(g x_t) - eps(x_t))^2 / mean eps(x_t)^2, with
    g the two flips and the rotation by 180 degrees. The score is the sum over levels of the log
    kernel densities of the gap, weighted by the inverse of its coefficient of variation on
    in-distribution images.

    Args:
        signals: Signal levels sqrt(alpha_bar). Defaults to 0.997 and 0.985.
    """

    name = "gepc"
    signals: tuple[float, ...] = parameter(
        (0.997, 0.985), lambda value: 0 < value < 1, "a list of numbers between 0 and 1", many=True
    )

    @property
    def nfe(self) -> int:
        return (1 + len(FLIPS)) * len(self.signals)

    @property
    def tensors(self) -> tuple[str, ...]:
        return KERNELS

    def measure(self, subject: Subject) -> Tensor:
        denoiser, gaps = subject.denoiser, []
        for draw, signal in enumerate(self.signals):
            t = denoiser.timestep_of_signal(signal)
            x = denoiser.noised(subject.x, t, draw)
            eps = denoiser.eps(x, t)
            flipped = [denoiser.eps(x.flip(axes), t).flip(axes) for axes in FLIPS]
            gap = torch.stack([_mean_square(other - eps) for other in flipped]).mean(dim=0)
            gaps.append(gap / (_mean_square(eps) + FLOOR))
        return torch.stack(gaps, dim=1)

    def fit(self, features: Tensor) -> dict[str, Tensor]:
        return fit_kernels(features, self.name)

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        weights = fitted["centre"] / fitted["spread"]
        return (kernel_log_densities(features, fitted) * weights).sum(dim=1)


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(dim=1)
