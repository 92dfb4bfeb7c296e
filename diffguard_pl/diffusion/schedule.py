"""Noise schedules and the time steps that DDIM visits: frozen data, no state."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

TRAIN_STEPS = 1000


def linear_alpha_bar(steps: int = TRAIN_STEPS) -> Tensor:
    """Signal level alpha-bar [steps] of linear betas 1e-4..0.02, scaled to ``steps`` (guided-diffusion, ``linear``)."""
    scale = 1000 / steps
    return alpha_bar_of(torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64))


def cosine_alpha_bar(steps: int = TRAIN_STEPS) -> Tensor:
    """Signal level alpha-bar [steps] of the cosine schedule (guided-diffusion, ``cosine``; Nichol & Dhariwal 2021, eq. 17)."""
    level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    betas = [min(1 - level[i + 1] / level[i], 0.999) for i in range(steps)]
    return alpha_bar_of(torch.tensor(betas, dtype=torch.float64))


def scaled_linear_alpha_bar(
    start: float = 0.0015, end: float = 0.0195, steps: int = TRAIN_STEPS
) -> Tensor:
    """Signal level alpha-bar [steps] of betas that are linear in their square root (latent diffusion, ``linear``)."""
    return alpha_bar_of(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)


def alpha_bar_of(betas: Tensor) -> Tensor:
    """Signal level alpha-bar [T] of any betas [T]."""
    return torch.cumprod(1 - betas, dim=0)


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """The schedule [T] shifted and scaled so that it ends in pure noise, alpha-bar 0 (Lin et al. 2024, algorithm 1)."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@dataclass(frozen=True)
class Schedule:
    """What DDIM does at each index i = 0, ..., S-1; all [S], levels in float64, on the CPU.

    Inversion takes x from signal level (alpha-bar) ``inversion_from[i]`` to ``inversion_to[i]``, denoising from
    ``denoising_from[i]`` to ``denoising_to[i]``; in both the network is asked at ``timesteps[i]``.
    """

    timesteps: Tensor
    inversion_from: Tensor
    inversion_to: Tensor
    denoising_from: Tensor
    denoising_to: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)


def respaced(alpha_bar: Tensor, steps: int) -> Schedule:
    """guided-diffusion's ``ddimN``: every k-th training step, for the smallest integer k that keeps exactly N of them.

    Args:
        alpha_bar: [T] of the training schedule.
        steps: N.

    Raises:
        InputError: no integer stride keeps N of the T steps.
    """
    total = len(alpha_bar)
    stride = next((k for k in range(1, total + 1) if len(range(0, total, k)) == steps), None)
    if stride is None:
        possible = {len(range(0, total, k)) for k in range(1, total + 1)}
        near = sorted(sorted(possible, key=lambda n: abs(n - steps))[:4])
        raise InputError(
            f"steps={steps}: no integer stride keeps {steps} of {total} training steps; choose one of {near}"
        )
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
    """Latent diffusion's ``make_ddim_timesteps("uniform")``: ``range(0, T, T // S) + 1``.

    Where S does not divide T there are a few more steps than asked for, as in the original.

    Args:
        alpha_bar: [T] of the training schedule.
        steps: S.

    Raises:
        InputError: S is not in 1..T, or its last time step lies beyond the training schedule.
    """
    total = len(alpha_bar)
    if not 1 <= steps <= total:
        raise InputError(f"steps={steps}: expected 1 to {total}")
    timesteps = torch.arange(0, total, total // steps) + 1
    if timesteps[-1] >= total:
        raise InputError(
            f"steps={steps}: its last time step, {int(timesteps[-1])}, is beyond the {total} trained; choose another number"
        )
    level = alpha_bar[timesteps]
    before = torch.cat([alpha_bar[:1], level[:-1]])
    return Schedule(
        timesteps,
        inversion_from=before,
        inversion_to=level,
        denoising_from=level,
        denoising_to=before,
    )
