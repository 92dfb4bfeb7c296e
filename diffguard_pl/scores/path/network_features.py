"""CFS: features of the diffusion model's own network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..hyperparameters import parameter
from .base import MeasuredScore, Subject
from .density import MIXTURE, fit_mixture, mixture_log_density


@dataclass(frozen=True)
class CFS(MeasuredScore):
    """CFS: log-density of two feature maps of the UNet (2026, arXiv 2605.11014).

    One evaluation at a low noise level gives the last block of the encoder and the first of the
    decoder. The features are mean and standard deviation over pixels of each channel; their
    density is a Gaussian with a diagonal covariance.

    Args:
        log_snr: Level, log(alpha_bar / (1 - alpha_bar)). Defaults to the paper's 5.
    """

    name = "cfs"
    log_snr: float = parameter(5.0, lambda value: True, "a number")

    @property
    def nfe(self) -> int:
        return 1

    @property
    def tensors(self) -> tuple[str, ...]:
        return MIXTURE

    def measure(self, subject: Subject) -> Tensor:
        # A Gaussian with a diagonal covariance has the same density for each feature on its own.
        unet = _unet(subject.network)
        t = subject.denoiser.timestep_of_signal(torch.tensor(self.log_snr).sigmoid().sqrt().item())
        maps: list[list[Tensor]] = [[], []]
        hooks = [
            block.register_forward_hook(lambda _, __, output, kept=kept: kept.append(_map(output)))
            for block, kept in zip((unet.down_blocks[-1], unet.up_blocks[0]), maps, strict=True)
        ]
        try:
            for part in subject.denoiser.noised(subject.x, t, 0).split(subject.denoiser.batch):
                subject.denoiser.eps(part, t)
                # A compiled network sees the batch filled up with copies.
                for kept in maps:
                    kept[-1] = kept[-1][: len(part)]
        finally:
            for hook in hooks:
                hook.remove()
        values = [torch.cat(parts).flatten(2) for parts in maps]
        return torch.cat([part for map in values for part in (map.mean(2), map.std(2))], dim=1)

    def fit(self, features: Tensor) -> dict[str, Tensor]:
        return fit_mixture(features, 1, self.name, diagonal=True)

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return mixture_log_density(features, fitted)


def _unet(network: nn.Module) -> Any:
    """Return the part of a diffusion model that has down and up blocks."""
    for module in network.modules():
        if hasattr(module, "down_blocks") and hasattr(module, "up_blocks"):
            return module
    raise InputError(
        f"path_scores: cfs: {type(network).__name__} has no UNet with down_blocks and up_blocks; "
        "leave it out"
    )


def _map(output: Any) -> Tensor:
    """Return the feature map of a block; that of a down block comes with those to skip to."""
    found = output[0] if isinstance(output, tuple) else output
    return found.detach().float()
