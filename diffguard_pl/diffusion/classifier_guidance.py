"""TODO."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax

from ..dtypes import at_least_float32
from ..errors import InputError
from .ddim import Level, predict_x0
from .guidance import Guidance, GuidanceInputs, Network, Protected, _clipped, _interval

GRADIENT_SCALE = 1024.0
"""Keeps gradients of a classifier in half precision from vanishing; a power of two, so that it changes nothing else."""


def cut(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Squares of images [n, C, H, W], resized to [n * cutouts, C, size, size], nearest neighbour, as ``interpolate`` does.

    Args:
        images: whose squares may all be different ones.
        crops: [n, cutouts, 3] x, y and side.
        size: of the result.
    """
    channels, width = images.shape[1], images.shape[-1]
    x, y, side = crops.unbind(dim=-1)
    steps = (
        torch.arange(size, device=crops.device, dtype=torch.float32)
        * (side.float() / size)[..., None]
    )
    steps = steps.floor().long().minimum(side[..., None] - 1)  # [n, cutouts, size]
    pixels = (y[..., None] + steps)[..., None] * width + (x[..., None] + steps)[..., None, :]
    taken = images.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1))
    return taken.unflatten(2, pixels.shape[1:]).transpose(1, 2).flatten(0, 1)


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
            raise InputError(
                f"guidance: cutouts={cutouts}, cutout_size={cutout_size}; expected at least 0 and 1"
            )
        self.scale, self.cutouts, self.cutout_size, self.x0hat, self.seed = (
            scale,
            cutouts,
            cutout_size,
            x0hat,
            seed,
        )
        self.interval = _interval(interval)

    def crops(self, steps: int, image_size: int) -> Tensor | None:
        if self.cutouts == 0:
            return None
        sequence = crop_sequence(image_size, self.cutouts, self.cutout_size, self.seed)
        return torch.tensor([[crop[:3] for crop in next(sequence)] for _ in range(steps)])

    def noise(
        self,
        network: Network,
        x: Tensor,
        t: Tensor,
        level: Level,
        rows: GuidanceInputs,
        classifier: Protected,
    ) -> Tensor:
        eps, g = network(x[: len(t)], t, rows.asked), len(rows.labels)
        at = level.of_rows(slice(g))
        x0 = predict_x0(x[:g], eps[:g], at)
        eps = _clipped(x, torch.cat([eps, eps[: rows.twins]]), level, rows.clip)
        if g == 0:
            return eps
        gradient = self.gradient(x[:g], x0, at, rows.labels, rows.crops, classifier)
        return torch.cat([eps[:g] - at.noise * rows.scale * gradient, eps[g:]])

    def gradient(
        self,
        x: Tensor,
        x0: Tensor,
        level: Level,
        labels: Tensor,
        crops: Tensor | None,
        classifier: Protected,
    ) -> Tensor:
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
            log_p = log_softmax(at_least_float32(classifier.logits(views)), dim=-1)
            chosen = log_p.gather(
                1, labels.clone().repeat_interleave(1 if crops is None else crops.shape[1])[:, None]
            )
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
        return interpolate(
            images[:, :, self.y : self.y + self.side, self.x : self.x + self.side], self.size
        )


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
