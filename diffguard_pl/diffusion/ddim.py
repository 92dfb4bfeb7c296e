"""DDIM at eta = 0, in both directions (Song et al. 2021, equation 12). No noise is ever drawn.

    x0hat = (x - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)
    x_to  = sqrt(alpha_bar_to) x0hat + sqrt(1 - alpha_bar_to) eps

Each row of a batch has its own level, so rows of different images and timesteps can share a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .schedule import Schedule


class Level(NamedTuple):
    """Signal and noise level of each row: x = signal x0 + noise eps. Both are [N, 1, 1, 1].

    Attributes:
        signal: sqrt(alpha_bar).
        noise: sqrt(1 - alpha_bar).
    """

    signal: Tensor
    noise: Tensor

    @classmethod
    def of(cls, alpha_bar: Tensor, like: Tensor) -> "Level":
        """Return the level of alpha-bar [N] in float64, with the dtype and device of ``like``."""
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        return cls(signal.to(like).view(-1, 1, 1, 1), noise.to(like).view(-1, 1, 1, 1))

    def select(self, rows: Tensor | slice) -> "Level":
        """Return the level of some of the rows."""
        return Level(self.signal[rows], self.noise[rows])


def predict_x0(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Return x0hat, the clean image that remains when the noise is removed from x."""
    return (x - level.noise * eps) / level.signal


def eps_from_x0(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """Return the noise that remains when the clean image is removed from x."""
    return (x - level.signal * x0) / level.noise


def clip_eps(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Return the noise whose x0hat is that of ``eps`` clamped to [-1, 1]."""
    return eps_from_x0(x, predict_x0(x, eps, level).clamp(-1, 1), level)


def step(x: Tensor, eps: Tensor, level: Level, to: Level) -> Tensor:
    """Take a DDIM step between two levels: up in noise for inversion, down for denoising."""
    return to.signal * predict_x0(x, eps, level) + to.noise * eps


@dataclass(frozen=True)
class Step:
    """A step that some rows of a batch have taken, as callbacks see it.

    Attributes:
        index: [n] schedule index of each row, on the CPU.
        batch_index: [n] rows of the batch that took the step.
        x: [n, C, H, W] states after the step.
        eps: [n, C, H, W] noise that the step used.
    """

    index: Tensor
    batch_index: Tensor
    x: Tensor
    eps: Tensor


StepCallback = Callable[[Step], None]


class NoiseModel(Protocol):
    """Predicts the noise of a step, guidance included."""

    def __call__(self, x: Tensor, index: Tensor, level: Level, batch_index: Tensor) -> Tensor:
        """Return the noise in x.

        Args:
            x: [n, C, H, W] states.
            index: [n] schedule index of each state, on the CPU.
            level: Signal and noise level of x.
            batch_index: [n] rows of the batch that these states are.
        """


@torch.no_grad()
def invert(
    model: NoiseModel,
    x: Tensor,
    schedule: Schedule,
    steps: int,
    stop: Callable[[Tensor, Tensor], Tensor] | None = None,
    callback: StepCallback | None = None,
) -> tuple[Tensor, Tensor]:
    """Invert images to noise, each until it stops.

    Args:
        model: Predicts the noise.
        x: Images or latents [N, C, H, W].
        schedule: Schedule of S steps.
        steps: Number of steps to take at most.
        stop: Adaptive early stop: maps the states x [n, C, H, W] after a step and their rows [n]
            in the batch to a bool mask [n] of those to stop. None: all rows take all steps.
        callback: Called after each step.

    Returns:
        The noise [N, C, H, W] and the index [N] at which each row stopped, the latter on the CPU.
    """
    x = x.clone()
    batch_index = torch.arange(len(x))
    stop_index = torch.full((len(x),), steps - 1)
    for i in range(steps):  # 0, ..., steps-1
        index = torch.full_like(batch_index, i)
        level = Level.of(schedule.inversion_from[index], x)
        to = Level.of(schedule.inversion_to[index], x)

        # Predict the noise of the rows that have not stopped.
        x_i = x[batch_index]
        eps = model(x_i, index, level, batch_index)

        # DDIM step towards noise.
        x_i = step(x_i, eps, level, to)
        x[batch_index] = x_i
        if callback:
            callback(Step(index, batch_index, x_i, eps))

        # Adaptive early stop.
        if stop:
            stopped = stop(x_i, batch_index).cpu()
            stop_index[batch_index[stopped]] = i
            batch_index = batch_index[~stopped]
            if len(batch_index) == 0:
                break
    return x, stop_index


@torch.no_grad()
def denoise(
    model: NoiseModel,
    x: Tensor,
    schedule: Schedule,
    start: Tensor,
    callback: StepCallback | None = None,
    last: int = 0,
) -> Tensor:
    """Denoise to images. All rows begin together, each at its own index, and leave when done.

    Args:
        model: Predicts the noise, guidance included.
        x: Noise [N, C, H, W].
        schedule: Schedule of S steps.
        start: [N] first index of each row, on the CPU; it takes ``start + 1 - last`` steps.
        callback: Called after each step.
        last: Index of the last step.

    Returns:
        Images or latents [N, C, H, W].
    """
    x = x.clone()
    for k in range(int(start.max()) + 1 - last):
        batch_index = (start - k >= last).nonzero()[:, 0]
        index = start[batch_index] - k  # start, start-1, ..., last
        level = Level.of(schedule.denoising_from[index], x)
        to = Level.of(schedule.denoising_to[index], x)

        # DDIM step towards the image.
        x_i = x[batch_index]
        eps = model(x_i, index, level, batch_index)
        x_i = step(x_i, eps, level, to)
        x[batch_index] = x_i
        if callback:
            callback(Step(index, batch_index, x_i, eps))
    return x
