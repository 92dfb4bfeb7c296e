"""Noise schedules, and the timesteps that DDIM visits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

TRAIN_STEPS = 1000
"""Length T of the training schedule of most diffusion models."""


def linear_alpha_bar(steps: int = TRAIN_STEPS) -> Tensor:
    """Return alpha-bar [steps] of linear betas, 1e-4 to 0.02 (guided-diffusion's ``linear``)."""
    scale = 1000 / steps
    return alpha_bar_of(torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64))


def cosine_alpha_bar(steps: int = TRAIN_STEPS) -> Tensor:
    """Return alpha-bar [steps] of the cosine schedule (Nichol & Dhariwal 2021, equation 17).

    This is guided-diffusion's ``cosine``.
    """
    level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    betas = [min(1 - level[i + 1] / level[i], 0.999) for i in range(steps)]
    return alpha_bar_of(torch.tensor(betas, dtype=torch.float64))


def scaled_linear_alpha_bar(
    start: float = 0.0015, end: float = 0.0195, steps: int = TRAIN_STEPS
) -> Tensor:
    """Return alpha-bar [steps] of betas with linear roots (latent diffusion's ``linear``)."""
    return alpha_bar_of(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)


def alpha_bar_of(betas: Tensor) -> Tensor:
    """Return alpha-bar [T], the cumulative product of 1 - beta, of betas [T]."""
    return torch.cumprod(1 - betas, dim=0)


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Rescale alpha-bar [T] to end in pure noise, alpha-bar 0 (Lin et al. 2024, algorithm 1)."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@dataclass(frozen=True)
class Schedule:
    """Timesteps and signal levels of DDIM at each index i = 0, ..., S-1, on the CPU.

    Inversion takes x from alpha-bar ``inversion_from[i]`` to ``inversion_to[i]``, denoising from
    ``denoising_from[i]`` to ``denoising_to[i]``. In both, the network is evaluated at
    ``timesteps[i]``.

    Attributes:
        timesteps: [S] training timesteps, ascending.
        inversion_from, inversion_to: [S] alpha-bar in float64.
        denoising_from, denoising_to: [S] alpha-bar in float64.
    """

    timesteps: Tensor
    inversion_from: Tensor
    inversion_to: Tensor
    denoising_from: Tensor
    denoising_to: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)


def respaced(alpha_bar: Tensor, steps: int) -> Schedule:
    """Return guided-diffusion's ``ddimN``: every k-th training step, so that N of them remain.

    The stride k is the smallest integer that keeps exactly N.

    Args:
        alpha_bar: [T] signal level of the training schedule.
        steps: Number N of steps.

    Raises:
        InputError: No integer stride keeps N of the T steps.
    """
    total = len(alpha_bar)

    # Smallest stride k for which range(0, T, k) has N entries.
    stride = next((k for k in range(1, total + 1) if len(range(0, total, k)) == steps), None)
    if stride is None:
        possible = {len(range(0, total, k)) for k in range(1, total + 1)}
        near = sorted(sorted(possible, key=lambda n: abs(n - steps))[:4])
        raise InputError(
            f"steps={steps}: no integer stride keeps {steps} of {total} training steps; "
            f"choose from: {', '.join(map(str, near))}"
        )

    # Inversion ends in pure noise (alpha-bar 0), denoising in a clean image (alpha-bar 1).
    timesteps = torch.arange(0, total, stride)
    level = alpha_bar[timesteps]
    return Schedule(
        timesteps=timesteps,
        inversion_from=level,
        inversion_to=torch.cat([level[1:], level.new_zeros(1)]),
        denoising_from=level,
        denoising_to=torch.cat([level.new_ones(1), level[:-1]]),
    )


def uniform(alpha_bar: Tensor, steps: int) -> Schedule:
    """Return latent diffusion's ``make_ddim_timesteps("uniform")``: ``range(0, T, T // S) + 1``.

    If S does not divide T, the result has a few more steps, as in the original.

    Args:
        alpha_bar: [T] signal level of the training schedule.
        steps: Number S of steps.

    Raises:
        InputError: S is not in 1..T, or the last timestep lies beyond the training schedule.
    """
    total = len(alpha_bar)
    if not 1 <= steps <= total:
        raise InputError(f"steps={steps}: must be 1 to {total}")
    timesteps = torch.arange(0, total, total // steps) + 1
    if timesteps[-1] >= total:
        raise InputError(
            f"steps={steps}: the last timestep, {int(timesteps[-1])}, must be below {total}; "
            "choose another number of steps"
        )

    # Both ways visit the same levels; the one below the first timestep is that of t = 0.
    level = alpha_bar[timesteps]
    previous = torch.cat([alpha_bar[:1], level[:-1]])
    return Schedule(
        timesteps=timesteps,
        inversion_from=previous,
        inversion_to=level,
        denoising_from=level,
        denoising_to=previous,
    )
