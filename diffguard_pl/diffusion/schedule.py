"""Noise schedules, and the timesteps that DDIM visits."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, choose

TRAIN_STEPS = 1000
"""Length T of the training schedule of most diffusion models."""
LATENT_SCHEDULES = ["linear", "cosine", "sqrt_linear", "sqrt"]
"""Names that latent-diffusion gives its schedules."""


# ---- guided-diffusion


def linear_alpha_bar(steps: int = TRAIN_STEPS) -> Tensor:
    """Return alpha-bar [steps] of linear betas, 1e-4 to 0.02 (guided-diffusion's ``linear``)."""
    return alpha_bar_of(torch.linspace(*_beta_range(steps), steps, dtype=torch.float64))


def linear_root_alpha_bar(steps: int = TRAIN_STEPS) -> Tensor:
    """Return alpha-bar [steps] of betas with linear roots, 1e-4 to 0.02.

    This is ``ldm_linear`` of DiffGuard's guided-diffusion.
    """
    return scaled_linear_alpha_bar(*_beta_range(steps), steps)


def half_cosine_alpha_bar(steps: int = TRAIN_STEPS) -> Tensor:
    """Return alpha-bar [steps] of betas that rise from 1e-4 to 0.02 along half a cosine wave.

    This is ``cos_linear`` of DiffGuard's guided-diffusion.
    """
    start, end = _beta_range(steps)
    angle = torch.arange(steps, dtype=torch.float64) / steps * math.pi
    return alpha_bar_of(start + (end - start) * (1 - angle.cos()) / 2)


def _beta_range(steps: int) -> tuple[float, float]:
    """Return the first and the last beta of a linear schedule of any length."""
    scale = 1000 / steps
    return scale * 1e-4, scale * 0.02


def cosine_alpha_bar(steps: int = TRAIN_STEPS, s: float = 0.008) -> Tensor:
    """Return alpha-bar [steps] of the cosine schedule (Nichol & Dhariwal 2021, equation 17).

    This is ``cosine`` of guided-diffusion and of latent diffusion.
    """
    level = [math.cos((i / steps + s) / (1 + s) * math.pi / 2) ** 2 for i in range(steps + 1)]
    betas = [min(1 - level[i + 1] / level[i], 0.999) for i in range(steps)]
    return alpha_bar_of(torch.tensor(betas, dtype=torch.float64))


# ---- latent-diffusion


def scaled_linear_alpha_bar(
    start: float = 0.0015, end: float = 0.0195, steps: int = TRAIN_STEPS
) -> Tensor:
    """Return alpha-bar [steps] of betas with linear roots (latent diffusion's ``linear``)."""
    return alpha_bar_of(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)


def latent_alpha_bar(name: str, start: float, end: float, cosine_s: float, steps: int) -> Tensor:
    """Return alpha-bar [steps] of a schedule by the name that latent-diffusion gives it.

    Args:
        name: ``linear`` (betas with linear roots), ``sqrt_linear`` (linear betas), ``sqrt`` (roots
            of linear betas) or ``cosine``.
        start: First beta, or its square for ``sqrt``; not used by ``cosine``.
        end: Last beta, or its square for ``sqrt``; not used by ``cosine``.
        cosine_s: Offset of ``cosine``.
        steps: Number of timesteps of the training.
    """
    choose("beta_schedule", name, LATENT_SCHEDULES)
    if not 0 < start <= end < 1:
        raise InputError(
            f"linear_start={start}, linear_end={end}: must be betas, 0 < linear_start <= "
            "linear_end < 1; correct them"
        )
    if name == "linear":
        return scaled_linear_alpha_bar(start, end, steps)
    if name == "cosine":
        return cosine_alpha_bar(steps, cosine_s)
    betas = torch.linspace(start, end, steps, dtype=torch.float64)
    return alpha_bar_of(betas if name == "sqrt_linear" else betas.sqrt())


# ---- any


def alpha_bar_of(betas: Tensor) -> Tensor:
    """Return alpha-bar [T], the cumulative product of 1 - beta, of betas [T]."""
    return torch.cumprod(1 - betas, dim=0)


def alpha_bar_of_sigma(sigma: Tensor) -> Tensor:
    """Return alpha-bar [T] of x0 + sigma eps, for sigma [T] in float64."""
    return 1 / (1 + sigma**2)


def alpha_bar_of_flow(s: Tensor) -> Tensor:
    """Return alpha-bar [T] of (1 - s) x0 + s eps, for s [T] in [0, 1] in float64."""
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2)


def sigma_of(alpha_bar: Tensor) -> Tensor:
    """Return noise / signal [T] of alpha-bar [T]; the inverse of :func:`alpha_bar_of_sigma`."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Rescale alpha-bar [T] to end in pure noise, alpha-bar 0 (Lin et al. 2024, algorithm 1)."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def alpha_bar_at(alpha_bar: Tensor, timesteps: Tensor) -> Tensor:
    """Return the signal level [n] at timesteps [n], which may lie between those of the training.

    Between them ln(sigma) is linear, where sigma = noise / signal (as in diffusers' schedulers).

    Args:
        alpha_bar: [T] signal level of the training schedule, in float64.
        timesteps: Integers, or floats, in [0, T - 1].
    """
    if not timesteps.is_floating_point():
        return alpha_bar[timesteps]
    log_sigma = _log_sigma(alpha_bar)
    low = timesteps.floor().long().clamp(0, max(0, len(alpha_bar) - 2))
    high = (low + 1).clamp(max=len(alpha_bar) - 1)
    found = torch.lerp(log_sigma[low], log_sigma[high], (timesteps - low).to(log_sigma))
    return alpha_bar_of_sigma(found.exp())


def timesteps_at(alpha_bar: Tensor, sigma: Tensor) -> Tensor:
    """Return the timesteps [n], in float64, at which noise / signal is sigma [n].

    The inverse of :func:`alpha_bar_at`; the first or the last timestep where sigma is out of range.
    """
    log_sigma, wanted = _log_sigma(alpha_bar), sigma.double().log()
    high = torch.searchsorted(log_sigma, wanted).clamp(1, len(log_sigma) - 1)
    low = high - 1
    share = (wanted - log_sigma[low]) / (log_sigma[high] - log_sigma[low])
    return low + share.clamp(0, 1)


def _log_sigma(alpha_bar: Tensor) -> Tensor:
    return sigma_of(alpha_bar).log()


@dataclass(frozen=True)
class Schedule:
    """Timesteps and signal levels of DDIM at each index i = 0, ..., S-1, on the CPU.

    Inversion takes x from alpha-bar ``inversion_from[i]`` to ``inversion_to[i]``, denoising from
    ``denoising_from[i]`` to ``denoising_to[i]``. In both, the network is evaluated at
    ``timesteps[i]``.

    Attributes:
        timesteps: [S] training timesteps, ascending: integers, or floats in float64.
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
    return _at_timesteps(alpha_bar, _strided_timesteps(len(alpha_bar), steps, f"steps={steps}"))


def respaced_by(alpha_bar: Tensor, respacing: str | int) -> Schedule:
    """Return the schedule of a ``timestep_respacing`` of guided-diffusion.

    Args:
        alpha_bar: [T] signal level of the training schedule.
        respacing: ``ddimN`` as in :func:`respaced`; or the number of steps in each of equal
            sections of the training schedule, such as ``250`` or ``10,15,20``; or nothing, for
            all T steps.

    Raises:
        InputError: The text is of another form, or a section does not have that many steps.
    """
    total, text = len(alpha_bar), str(respacing).strip()
    if not re.fullmatch(r"(ddim)?\d{1,9}|\d{1,9}(\s*,\s*\d{1,9})*|", text):
        raise InputError(
            f"timestep_respacing={text[:60]!r}: must be ddimN or a number of steps per section, "
            "such as 250 or 10,15,20"
        )
    if text.startswith("ddim"):
        steps = int(text.removeprefix("ddim"))
        setting = f"timestep_respacing={text}"
        return _at_timesteps(alpha_bar, _strided_timesteps(total, steps, setting))
    counts = [int(count) for count in text.split(",")] if text else [total]
    return _at_timesteps(alpha_bar, _timesteps_of_sections(total, counts))


def _timesteps_of_sections(total: int, counts: Sequence[int]) -> Tensor:
    """Return timesteps that divide each section of the training schedule evenly.

    The sections are of equal length, the first ones one step longer if T is not divisible. Each
    keeps its first and its last timestep; a single one is the first.

    Args:
        total: Length T of the training schedule.
        counts: Number of timesteps of each section.
    """
    timesteps: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = total // len(counts) + (1 if i < total % len(counts) else 0)
        if count > size:
            raise InputError(
                f"timestep_respacing: section {i + 1} has {size} training steps, not {count}; "
                "lower the number"
            )

        # Add up the stride and round, so that the sums round as in the original.
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        offset = 0.0
        for _ in range(count):
            timesteps.append(start + round(offset))
            offset += stride
        start += size
    if not timesteps:
        raise InputError("timestep_respacing: must keep at least one step; raise the number")
    return torch.tensor(timesteps)


def _strided_timesteps(total: int, steps: int, setting: str) -> Tensor:
    """Return every k-th of T timesteps, for the smallest k that keeps exactly N of them."""

    # Smallest stride k for which range(0, T, k) has N entries.
    stride = next((k for k in range(1, total + 1) if len(range(0, total, k)) == steps), None)
    if stride is None:
        possible = {len(range(0, total, k)) for k in range(1, total + 1)}
        near = sorted(sorted(possible, key=lambda n: abs(n - steps))[:4])
        raise InputError(
            f"{setting}: no integer stride keeps {steps} of {total} training steps; "
            f"choose from: {', '.join(map(str, near))}"
        )

    return torch.arange(0, total, stride)


def _at_timesteps(alpha_bar: Tensor, timesteps: Tensor) -> Schedule:
    """Return guided-diffusion's schedule of the training steps [S] that are kept."""
    # Inversion ends in pure noise (alpha-bar 0), denoising in a clean image (alpha-bar 1).
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

    As in the original, the result has a few more steps than S if S does not divide T, and a last
    step of T, which lies beyond the training schedule, is dropped: S = 600 gives 999 steps.

    Args:
        alpha_bar: [T] signal level of the training schedule.
        steps: Number S of steps.

    Raises:
        InputError: S is not in 1..T.
    """
    total = len(alpha_bar)
    _check_steps(steps, total)
    return _between_timesteps(alpha_bar, torch.arange(0, total, total // steps) + 1)


def quadratic(alpha_bar: Tensor, steps: int) -> Schedule:
    """Return latent diffusion's ``make_ddim_timesteps("quad")``: close together near the image.

    The timesteps are squares of S even steps from 0 to sqrt(0.8 T), rounded down, plus 1. As in the
    original, the first ones are equal if S is large.

    Args:
        alpha_bar: [T] signal level of the training schedule.
        steps: Number S of steps.

    Raises:
        InputError: S is not in 1..T.
    """
    total = len(alpha_bar)
    _check_steps(steps, total)
    end = (0.8 * total) ** 0.5
    roots = torch.arange(steps, dtype=torch.float64) * (end / max(1, steps - 1))
    if steps > 1:
        # exactly, whatever rounding makes of the product
        roots[-1] = end
    return _between_timesteps(alpha_bar, roots.square().long() + 1)


def _check_steps(steps: int, total: int) -> None:
    if not 1 <= steps <= total:
        raise InputError(f"steps={steps}: must be 1 to {total}")


def _between_timesteps(alpha_bar: Tensor, timesteps: Tensor) -> Schedule:
    """Return latent diffusion's schedule of timesteps [S], without those of T or later."""
    timesteps = timesteps[timesteps < len(alpha_bar)]
    # the level below the first timestep is that of t = 0
    return at_timesteps(alpha_bar, timesteps, float(alpha_bar[0]))


def karras(alpha_bar: Tensor, steps: int, rho: float = 7.0) -> Schedule:
    """Return a schedule with even distances of sigma ** (1 / rho), from clean to the last timestep.

    Karras et al. 2022, equation 5; sigma = noise / signal.

    Args:
        alpha_bar: [T] signal level of the training schedule.
        steps: Number S of steps.
        rho: The larger, the closer together near the image.

    Raises:
        InputError: S is not in 1..T.
    """
    _check_steps(steps, len(alpha_bar))
    low, high = sigma_of(alpha_bar[[0, -1]]).tolist()
    sigmas = karras_sigmas(steps, low, high, rho)
    return at_timesteps(alpha_bar, timesteps_at(alpha_bar, sigmas))


def karras_sigmas(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Return sigma [steps], ascending, at even distances of sigma ** (1 / rho).

    Karras et al. 2022, equation 5. A single one is the largest.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    ramp = torch.arange(steps - 1, -1, -1, dtype=torch.float64) / max(1, steps - 1)
    return (high + ramp * (low - high)) ** rho


def at_timesteps(alpha_bar: Tensor, timesteps: Tensor, lowest: float = 1.0) -> Schedule:
    """Return a schedule that visits the same levels in both directions.

    Args:
        alpha_bar: [T] signal level of the training schedule.
        timesteps: [S] timesteps, ascending.
        lowest: Alpha-bar below the first timestep. Defaults to 1: a clean image.
    """
    level = alpha_bar_at(alpha_bar, timesteps)
    previous = torch.cat([level.new_tensor([lowest]), level[:-1]])
    return Schedule(
        timesteps=timesteps,
        inversion_from=previous,
        inversion_to=level,
        denoising_from=level,
        denoising_to=previous,
    )
