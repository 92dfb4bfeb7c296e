"""DDIM at eta = 0, in both directions (Song et al. 2021, eq. 12). No noise is ever drawn.

Every function works on rows: each row of a batch may be at a step of its own, so rows of different images, at different steps,
share one pass of the network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .schedule import Schedule


class Level(NamedTuple):
    """How much of each row is picture and how much is noise: x = signal * x0 + noise * eps. Both [N, 1, 1, 1]."""

    signal: Tensor
    noise: Tensor

    @classmethod
    def of(cls, alpha_bar: Tensor, like: Tensor) -> "Level":
        """From alpha-bar [N] in float64, in the type and on the device of ``like``."""
        return cls(
            *(
                root.to(like).view(-1, 1, 1, 1)
                for root in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
            )
        )

    def of_rows(self, rows: Tensor | slice) -> "Level":
        """That of some of the rows."""
        return Level(self.signal[rows], self.noise[rows])


@dataclass(frozen=True)
class Step:
    """What a step did, for a callback.

    Attributes:
        index: [n] schedule index of each row, on the CPU.
        rows: [n] which rows of the batch took the step.
        x: [n, C, H, W] after the step.
        eps: [n, C, H, W] the noise that the step used.
    """

    index: Tensor
    rows: Tensor
    x: Tensor
    eps: Tensor


Callback = Callable[[Step], None]


class NoiseModel(Protocol):
    def __call__(self, x: Tensor, index: Tensor, level: Level, rows: Tensor) -> Tensor:
        """The noise in x [n, C, H, W] at schedule indices [n], on the CPU, and level; ``rows`` [n] says which rows of the batch
        these are."""


def predict_x0(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """The picture that is left when the noise is taken out."""
    return (x - level.noise * eps) / level.signal


def predict_eps(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise that is left when the picture is taken out."""
    return (x - level.signal * x0) / level.noise


def clip_eps(x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """The noise after its picture is clamped to [-1, 1]."""
    return predict_eps(x, predict_x0(x, eps, level).clamp(-1, 1), level)


def step(x: Tensor, eps: Tensor, level: Level, to: Level) -> Tensor:
    """One DDIM step from ``level`` to ``to``: towards noise in inversion, towards the picture in denoising."""
    return to.signal * predict_x0(x, eps, level) + to.noise * eps


@torch.no_grad()
def invert(
    model: NoiseModel,
    x: Tensor,
    schedule: Schedule,
    steps: int,
    clip: bool = False,
    stop: Callable[[Tensor, Tensor], Tensor] | None = None,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor]:
    """Picture to noise, each row until it stops.

    Args:
        model: predicts the noise.
        x: pictures [N, C, H, W].
        schedule: of S steps.
        steps: how many of them to take at most.
        clip: clamp the predicted picture to [-1, 1] at every step but the first.
        stop: adaptive early stop; given x [n, C, H, W] after a step and their rows [n], says which are done: bool [n]. None:
            all rows take all steps.
        callback: called after each step.

    Returns:
        The noise [N, C, H, W] and the index [N] that each row stopped at, the latter on the CPU.
    """
    x = x.clone()
    rows = torch.arange(len(x))
    stopped_at = torch.full((len(x),), steps - 1)
    for i in range(steps):  # 0, ..., steps-1
        index = torch.full_like(rows, i)
        level = Level.of(schedule.inversion_from[index], x)
        x_i = x[rows]
        eps = model(x_i, index, level, rows)
        if clip and i > 0:
            eps = clip_eps(x_i, eps, level)
        x_i = step(x_i, eps, level, Level.of(schedule.inversion_to[index], x))
        x[rows] = x_i
        if callback:
            callback(Step(index, rows, x_i, eps))
        if stop:
            done = stop(x_i, rows).cpu()
            stopped_at[rows[done]] = i
            rows = rows[~done]
            if len(rows) == 0:
                break
    return x, stopped_at


@torch.no_grad()
def denoise(
    model: NoiseModel,
    x: Tensor,
    schedule: Schedule,
    start: Tensor,
    callback: Callback | None = None,
    last: int = 0,
) -> Tensor:
    """Noise to picture. All rows begin together, each at a step of its own, and leave when they are done.

    Args:
        model: predicts the noise, guidance included.
        x: noise [N, C, H, W].
        schedule: of S steps.
        start: [N] the index each row begins at, on the CPU; it takes ``start + 1 - last`` steps.
        callback: called after each step.
        last: the index that the last step is taken from.

    Returns:
        Pictures [N, C, H, W].
    """
    x = x.clone()
    for k in range(int(start.max()) + 1 - last):
        rows = (start - k >= last).nonzero()[:, 0]
        index = start[rows] - k
        level = Level.of(schedule.denoising_from[index], x)
        x_i = x[rows]
        eps = model(x_i, index, level, rows)
        x_i = step(x_i, eps, level, Level.of(schedule.denoising_to[index], x))
        x[rows] = x_i
        if callback:
            callback(Step(index, rows, x_i, eps))
    return x


def first_denoising_index(
    stop_index: Tensor, steps: int, skip_first_steps: int = 0, forback_skip_diff: int = 0
) -> Tensor:
    """The index [N] that denoising starts at: all ``steps`` indices in descending order, less the first ``skip``.

    With ``forback_skip_diff`` d > 0, skip = max(0, steps - stop_index - d), so that denoising starts a little above the noise
    level that inversion stopped at; else skip = ``skip_first_steps``.
    """
    if forback_skip_diff > 0:
        return (stop_index + forback_skip_diff - 1).clamp(max=steps - 1)
    return torch.full_like(stop_index, steps - 1 - skip_first_steps)
