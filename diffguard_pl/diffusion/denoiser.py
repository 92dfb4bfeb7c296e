"""The diffusion model at any timestep, for scores that evaluate it on their own.

Noise is drawn once and is the same for every image, so that the score of an image does not depend
on the batch, the order or the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .ddim import Level, clip_eps, predict_x0, step
from .guidance import Network


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model and its training schedule of T timesteps.

    Attributes:
        network: Diffusion model.
        alpha_bar: [T] signal level of the training schedule, in float64, on the CPU.
        null_label: Label that means "no class" to the network. None if it takes no labels.
        clip_denoised: Whether x0hat is clamped to [-1, 1].
        batch: Number of rows of a network call at most.
    """

    network: Network
    alpha_bar: Tensor
    null_label: int | None
    clip_denoised: bool
    batch: int

    def timestep(self, time: float) -> int:
        """Return the timestep at a fraction of the training schedule, 0 (clean) to 1 (noise)."""
        return round(time * (len(self.alpha_bar) - 1))

    def timestep_of_signal(self, signal: float) -> int:
        """Return the timestep whose signal level sqrt(alpha_bar) is the nearest."""
        return int((self.alpha_bar.sqrt() - signal).abs().argmin())

    def level(self, t: int, like: Tensor) -> Level:
        """Return the signal and noise level [1, 1, 1, 1] at a timestep."""
        return Level.of(self.alpha_bar[t : t + 1], like)

    def eps(self, x: Tensor, t: int, labels: Tensor | None = None) -> Tensor:
        """Predict the noise in x [n, C, h, w], without clamping.

        Args:
            x: States at timestep t.
            t: Timestep.
            labels: [n] labels. None: under "no class".
        """
        if labels is None:
            null = 0 if self.null_label is None else self.null_label
            labels = torch.full((len(x),), null, device=x.device)
        timesteps = torch.full((len(x),), t, device=x.device)
        parts = zip(*(part.split(self.batch) for part in (x, timesteps, labels)), strict=True)
        return torch.cat([self.network(*part) for part in parts])

    def noised(self, x: Tensor, t: int, draw: int) -> Tensor:
        """Return images or latents x [n, C, h, w] at timestep t, with noise that all share.

        Args:
            x: Clean images or latents.
            t: Timestep.
            draw: Number of the draw: other numbers give other noise.
        """
        level = self.level(t, x)
        return level.signal * x + level.noise * self.noise(x, draw)

    def noise(self, like: Tensor, draw: int) -> Tensor:
        """Return standard normal noise [1, C, h, w], the same each time for a number of a draw."""
        generator = torch.Generator().manual_seed(draw)
        return torch.randn(1, *like.shape[1:], generator=generator, dtype=torch.double).to(like)

    def x0(self, x: Tensor, t: int, labels: Tensor | None = None) -> Tensor:
        """Predict the clean images or latents x0hat of x [n, C, h, w] in one evaluation."""
        x0 = predict_x0(x, self.eps(x, t, labels), self.level(t, x))
        return x0.clamp(-1, 1) if self.clip_denoised else x0

    def denoise(
        self,
        x: Tensor,
        timesteps: Sequence[int],
        labels: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Denoise x [n, C, h, w] with DDIM along descending timesteps, and then to a clean image.

        Args:
            x: States at the first timestep.
            timesteps: Timesteps at which the network is evaluated.
            labels: [n] labels of classifier-free guidance. None: without a class.
            scale: Scale of the guidance; at 1 the noise is that under the label.
        """
        for t, to in zip(timesteps, [*timesteps[1:], None], strict=True):
            eps = self._guided_eps(x, t, labels, scale)
            level = self.level(t, x)
            if self.clip_denoised:
                eps = clip_eps(x, eps, level)
            if to is None:
                return predict_x0(x, eps, level)
            x = step(x, eps, level, self.level(to, x))
        return x

    def _guided_eps(self, x: Tensor, t: int, labels: Tensor | None, scale: float) -> Tensor:
        if labels is None or scale == 1:
            return self.eps(x, t, labels)
        unguided = self.eps(x, t)
        return unguided + scale * (self.eps(x, t, labels) - unguided)
