"""What steers a reconstruction to a label: the classifier's gradient, or a class-conditional network.

A guidance turns one pass of the network into the noise of its rows. Rows are of any image, of inversion and of denoising, at any
time step; some may be unguided (the auxiliary reconstruction of ``compare_to: unguided``): they share the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax

from ..errors import InputError
from .ddim import Level, clip_eps, predict_x0

GRADIENT_SCALE = 1024.0
"""Keeps gradients of a classifier in half precision from vanishing; a power of two, so that it changes nothing else."""

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""eps(x [n, C, H, W], t [n], labels [n]) -> [n, C, H, W]."""


class Rows(NamedTuple):
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
    def noise(self, network: Network, x: Tensor, t: Tensor, level: Level, rows: Rows, classifier: Protected) -> Tensor:
        """The noise in x [n + twins, C, H, W] at time steps t [n] and level [n + twins], in one call of the network."""


def cut(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Squares of images [n, C, H, W], resized to [n * cutouts, C, size, size], nearest neighbour, as ``interpolate`` does.

    Args:
        images: whose squares may all be different ones.
        crops: [n, cutouts, 3] x, y and side.
        size: of the result.
    """
    channels, width = images.shape[1], images.shape[-1]
    x, y, side = crops.unbind(dim=-1)
    steps = torch.arange(size, device=crops.device, dtype=torch.float32) * (side.float() / size)[..., None]
    steps = steps.floor().long().minimum(side[..., None] - 1)  # [n, cutouts, size]
    pixels = (y[..., None] + steps)[..., None] * width + (x[..., None] + steps)[..., None, :]
    taken = images.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1))
    return taken.unflatten(2, pixels.shape[1:]).transpose(1, 2).flatten(0, 1)


def _interval(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise InputError(f"guidance: interval={list(interval)}; expected two shares of the schedule, 0 <= low <= high <= 1")
    return low, high


def _clipped(x: Tensor, eps: Tensor, level: Level, clip: Tensor | None) -> Tensor:
    return eps if clip is None else torch.where(clip, clip_eps(x, eps, level), eps)


class ClassifierGuidance(Guidance):
    """Clean-gradient guidance by the classifier under protection (DiffGuard, section 3.3; Dhariwal & Nichol 2021, algorithm 2).

    The gradient is taken at an estimate of the clean picture, with respect to that estimate: nothing is ever back-propagated
    through the diffusion network, and the estimate comes from the step's own output.

    Args:
        scale: of the gradient.
        cutouts: crops of the picture that the classifier judges at each step; their log-probabilities are summed. 0: the whole
            picture.
        cutout_size: side of the smallest crop, and of all once resized, in pixels of the diffusion model.
        x0hat: judge the predicted clean picture, mixed with x; if false, x itself.
        seed: of the crop geometry. Every image sees the same sequence of crops, whatever batch it is in.
        interval: steer only at these time steps, as shares of the training schedule, 0 (clean) to 1 (noise).
    """

    needs_pixels = True

    def __init__(
        self,
        scale: float = 3.0,
        cutouts: int = 8,
        cutout_size: int = 224,
        x0hat: bool = True,
        seed: int = 100,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        if cutouts < 0 or cutout_size < 1:
            raise InputError(f"guidance: cutouts={cutouts}, cutout_size={cutout_size}; expected at least 0 and 1")
        self.scale, self.cutouts, self.cutout_size, self.x0hat, self.seed = scale, cutouts, cutout_size, x0hat, seed
        self.interval = _interval(interval)

    def crops(self, steps: int, image_size: int) -> Tensor | None:
        if self.cutouts == 0:
            return None
        sequence = crop_sequence(image_size, self.cutouts, self.cutout_size, self.seed)
        return torch.tensor([[crop[:3] for crop in next(sequence)] for _ in range(steps)])

    def noise(self, network: Network, x: Tensor, t: Tensor, level: Level, rows: Rows, classifier: Protected) -> Tensor:
        eps, g = network(x[: len(t)], t, rows.asked), len(rows.labels)
        at = level.of_rows(slice(g))
        x0 = predict_x0(x[:g], eps[:g], at)
        eps = _clipped(x, torch.cat([eps, eps[: rows.twins]]), level, rows.clip)
        if g == 0:
            return eps
        gradient = self.gradient(x[:g], x0, at, rows.labels, rows.crops, classifier)
        return torch.cat([eps[:g] - at.noise * rows.scale * gradient, eps[g:]])

    def gradient(self, x: Tensor, x0: Tensor, level: Level, labels: Tensor, crops: Tensor | None, classifier: Protected) -> Tensor:
        """The gradient [n, 3, H, W] without its scale: d/dx_in sum log p(label | crops of x_in).

        Args:
            x: [n, 3, H, W].
            x0: the picture predicted from it, unclamped.
            level: of x.
            labels: [n].
            crops: [n, cutouts, 3] x, y and side; None: the whole picture.
            classifier: whose gradient.
        """
        x_in = level.noise * x0 + (1 - level.noise) * x if self.x0hat else x
        with torch.inference_mode(False), torch.enable_grad():
            x_in = x_in.clone().requires_grad_()
            views = (x_in + 1) / 2
            if crops is not None:
                views = cut(views, crops, self.cutout_size)
                if self.cutout_size != classifier.input_size:
                    views = interpolate(views, classifier.input_size)
            log_p = log_softmax(classifier.logits(views).float(), dim=-1)
            chosen = log_p.gather(1, labels.clone().repeat_interleave(1 if crops is None else crops.shape[1])[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum() * GRADIENT_SCALE, x_in)
        return gradient / GRADIENT_SCALE


class Crop(NamedTuple):
    """A square of ``side`` pixels at (x, y), resized to ``size`` pixels, nearest neighbour."""

    x: int
    y: int
    side: int
    size: int

    def of(self, images: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, C, size, size]."""
        return interpolate(images[:, :, self.y : self.y + self.side, self.x : self.x + self.side], self.size)


def crop_sequence(image_size: int, count: int, size: int, seed: int) -> Iterator[list[Crop]]:
    """The crops of each step in turn, without end; in the original's order of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    smallest = min(image_size, size)
    while True:
        crops = []
        for _ in range(count):
            side = int(torch.rand([], generator=generator) * (image_size - smallest) + smallest)
            x = int(torch.randint(0, image_size - side + 1, (), generator=generator))
            y = int(torch.randint(0, image_size - side + 1, (), generator=generator))
            crops.append(Crop(x, y, side, size))
        yield crops


class ClassifierFreeGuidance(Guidance):
    """Classifier-free guidance, where the classifier looks at if wanted (Ho & Salimans 2022, eq. 6; DiffGuard, section 3.5).

    Args:
        scale: w in eps_null + w (eps_label - eps_null).
        cam_cut: distinct semantic guidance: guide only where the classifier's activation, scaled to 0..1 in each image, is above
            this; a negative value: where it is below its absolute value. None: guide everywhere.
        inversion_label: invert under the label; if false, under no class.
        inversion_scale: guidance scale of inversion under the label.
        interval: guide only at these time steps, as shares of the training schedule, 0 (clean) to 1 (noise); elsewhere a step takes
            one row in place of two (Kynkaanniemi et al. 2024).
    """

    needs_null_label = True
    rows = 2

    def __init__(
        self,
        scale: float = 10.0,
        cam_cut: float | None = None,
        inversion_label: bool = False,
        inversion_scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        if cam_cut is not None and not -1 <= cam_cut <= 1:
            raise InputError(f"guidance: cam_cut={cam_cut}; expected a share of the highest activation, -1 to 1, or null")
        self.scale, self.cam_cut, self.interval = scale, cam_cut, _interval(interval)
        self.inversion_scale = inversion_scale if inversion_label else 0.0

    def tells(self, scale: Tensor, masked: bool) -> Tensor:
        return (scale == 1) & (not masked)

    def noise(self, network: Network, x: Tensor, t: Tensor, level: Level, rows: Rows, classifier: Protected) -> Tensor:
        n, g = len(t), len(rows.labels)
        asked = torch.cat([rows.asked, rows.labels])
        eps, towards = network(torch.cat([x[:n], x[:g]]), torch.cat([t, t[:g]]), asked).split([n, g])
        steered = eps[:g] + rows.scale * (towards - eps[:g])
        if rows.mask is not None:
            steered = torch.where(rows.mask, steered, eps[:g])
        return _clipped(x, torch.cat([steered, eps[g:], eps[: rows.twins]]), level, rows.clip)
