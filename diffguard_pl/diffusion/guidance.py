"""What steers a reconstruction to a label: the classifier's gradient, or a class-conditional network.

A guidance turns one pass of the network into the noise of its rows. GuidanceInputs are of any image, of inversion and of denoising, at any
time step; some may be unguided (the auxiliary reconstruction of ``compare_to: unguided``): they share the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .ddim import Level, clip_eps

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""eps(x [n, C, H, W], t [n], labels [n]) -> [n, C, H, W]."""


class GuidanceInputs(NamedTuple):
    """What is wanted of the rows of a pass: of n that the network is asked for, and of twins. Those that are steered come first.

    Attributes:
        asked: [n] the label that the network is asked under: "no class", or the row's own where it is not to be steered but told.
        labels: [g] the class that each is steered to.
        scale: [g, 1, 1, 1] of the guidance.
        crops: [g, cutouts, 3] x, y and side of the squares that the classifier judges; None: it judges the whole picture.
        mask: bool [g, 1, h, w], where to steer; None: everywhere.
        clip: bool [n + twins, 1, 1, 1], whether the predicted picture is clamped to [-1, 1]; None: nowhere.
        twins: the last so many rows are the first ones once more, wanted without guidance; the network is not asked again.
    """

    asked: Tensor
    labels: Tensor
    scale: Tensor
    crops: Tensor | None = None
    mask: Tensor | None = None
    clip: Tensor | None = None
    twins: int = 0


@dataclass(frozen=True)
class Protected:
    """The classifier as guidance sees it.

    Attributes:
        logits: images [n, 3, H, W] in [0, 1] -> [n, classes], differentiable.
        input_size: side of the images that it takes.
    """

    logits: Callable[[Tensor], Tensor]
    input_size: int


class Guidance(ABC):
    """How a reconstruction is steered to a label.

    Attributes:
        scale: of denoising.
        inversion_scale: of inversion; 0: under no class, 1: under the label.
        rows: of the network that a row which is steered takes.
        interval: steer only at these time steps, as shares of the training schedule, 0 (clean) to 1 (noise).
    """

    scale: float
    inversion_scale = 0.0
    rows = 1
    interval: tuple[float, float] = (0.0, 1.0)
    cam_cut: float | None = None
    needs_null_label = False
    needs_pixels = False

    def denoising_scales(self, timesteps: Tensor, total: int) -> Tensor:
        """The scale [S] at each of the time steps [S] of a schedule of ``total`` training steps: 0 outside the interval."""
        low, high = self.interval
        inside = (timesteps >= low * (total - 1)) & (timesteps <= high * (total - 1))
        return torch.where(inside, self.scale, 0.0)

    def tells(self, scale: Tensor, masked: bool) -> Tensor:
        """Whether for this scale [n] it is enough to ask the network under the label: bool [n]."""
        return torch.zeros_like(scale, dtype=torch.bool)

    def steers(self, scale: Tensor, masked: bool) -> Tensor:
        """Whether a row of this scale [n] is to be steered: bool [n]."""
        return (scale != 0) & ~self.tells(scale, masked)

    def crops(self, steps: int, image_size: int) -> Tensor | None:
        """The squares that the classifier judges at each denoising step, first to last: x, y and side [steps, cutouts, 3]."""
        return None

    @abstractmethod
    def noise(
        self,
        network: Network,
        x: Tensor,
        t: Tensor,
        level: Level,
        rows: GuidanceInputs,
        classifier: Protected,
    ) -> Tensor:
        """The noise in x [n + twins, C, H, W] at time steps t [n] and level [n + twins], in one call of the network."""


def _interval(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"guidance: interval={list(interval)}; expected two shares of the schedule, 0 <= low <= high <= 1"
        )
    return low, high


def _clipped(x: Tensor, eps: Tensor, level: Level, clip: Tensor | None) -> Tensor:
    return eps if clip is None else torch.where(clip, clip_eps(x, eps, level), eps)
