"""What steers a reconstruction to a label: the classifier's gradient, or a class-conditional network.

A guidance wraps the network into the noise models that inversion and denoising take. Of the rows it is given some may be
unguided (the auxiliary reconstruction of ``compare_to: unguided``); they share the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax

from ..errors import InputError
from .ddim import Level, NoiseModel, clip_eps, predict_x0

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""eps(x [n, C, H, W], t [n], labels [n]) -> [n, C, H, W]."""


@dataclass(frozen=True)
class Condition:
    """What each row of a batch is to become.

    Attributes:
        labels: [N] class.
        null_label: the label that means "no class" to the network; None where it has none.
        guided: bool [N], on the CPU; the other rows are reconstructed without guidance.
        mask: bool [N, 1, h, w], where to guide; None: everywhere.
    """

    labels: Tensor
    null_label: int | None
    guided: Tensor
    mask: Tensor | None = None

    def null(self, rows: Tensor) -> Tensor:
        """Labels [n] that tell the network no class; the class itself where the network cannot go without."""
        labels = self.labels[rows]
        return labels if self.null_label is None else torch.full_like(labels, self.null_label)


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
    """How a reconstruction is steered to a label."""

    cam_cut: float | None = None
    needs_null_label = False
    needs_pixels = False

    @abstractmethod
    def inversion(self, network: Network, condition: Condition) -> NoiseModel:
        """The noise model of inversion."""

    @abstractmethod
    def denoising(self, network: Network, condition: Condition, classifier: Protected, clip: bool) -> NoiseModel:
        """The noise model of denoising; ``clip`` clamps the unguided picture to [-1, 1]."""


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
    """

    needs_pixels = True

    def __init__(self, scale: float = 3.0, cutouts: int = 8, cutout_size: int = 224, x0hat: bool = True, seed: int = 100):
        if cutouts < 0 or cutout_size < 1:
            raise InputError(f"guidance: cutouts={cutouts}, cutout_size={cutout_size}; expected at least 0 and 1")
        self.scale, self.cutouts, self.cutout_size, self.x0hat, self.seed = scale, cutouts, cutout_size, x0hat, seed

    def inversion(self, network: Network, condition: Condition) -> NoiseModel:
        return lambda x, t, level, rows: network(x, t, condition.null(rows))

    def denoising(self, network: Network, condition: Condition, classifier: Protected, clip: bool) -> NoiseModel:
        crops: Iterator[list[Crop]] | None = None

        def noise(x: Tensor, t: Tensor, level: Level, rows: Tensor) -> Tensor:
            nonlocal crops
            if crops is None:
                crops = crop_sequence(x.shape[-1], self.cutouts, self.cutout_size, self.seed)
            eps = network(x, t, condition.null(rows))
            guided = condition.guided[rows].nonzero()[:, 0]
            at = Level(level.signal[guided], level.noise[guided])
            x0 = predict_x0(x[guided], eps[guided], at)
            gradient = self.gradient(x[guided], x0, at, condition.labels[rows[guided]], classifier, next(crops))
            if clip:
                eps = clip_eps(x, eps, level)
            eps[guided] -= at.noise * gradient
            return eps

        return noise

    def gradient(self, x: Tensor, x0: Tensor, level: Level, labels: Tensor, classifier: Protected, crops: "list[Crop]") -> Tensor:
        """The guidance g [n, 3, H, W]: scale * d/dx_in sum log p(label | crops of x_in).

        Args:
            x: [n, 3, H, W].
            x0: the picture predicted from it, unclamped.
            level: of x.
            labels: [n].
            classifier: whose gradient.
            crops: of this step; empty: the whole picture.
        """
        x_in = level.noise * x0 + (1 - level.noise) * x if self.x0hat else x
        with torch.inference_mode(False), torch.enable_grad():
            x_in = x_in.clone().requires_grad_()
            picture = (x_in + 1) / 2
            views = torch.cat([crop.of(picture) for crop in crops]) if crops else picture
            if crops and self.cutout_size != classifier.input_size:
                views = interpolate(views, classifier.input_size)
            log_p = log_softmax(classifier.logits(views).float(), dim=-1)
            chosen = log_p.gather(1, labels.clone().repeat(max(1, len(crops)))[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), x_in)
        return self.scale * gradient


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
    """

    needs_null_label = True

    def __init__(
        self, scale: float = 10.0, cam_cut: float | None = None, inversion_label: bool = False, inversion_scale: float = 1.0
    ):
        if cam_cut is not None and not -1 <= cam_cut <= 1:
            raise InputError(f"guidance: cam_cut={cam_cut}; expected a share of the highest activation, -1 to 1, or null")
        self.scale, self.cam_cut = scale, cam_cut
        self.inversion_label, self.inversion_scale = inversion_label, inversion_scale

    def inversion(self, network: Network, condition: Condition) -> NoiseModel:
        everywhere = Condition(condition.labels, condition.null_label, torch.full_like(condition.guided, self.inversion_label))
        return self._noise(network, everywhere, self.inversion_scale, clip=False)

    def denoising(self, network: Network, condition: Condition, classifier: Protected, clip: bool) -> NoiseModel:
        return self._noise(network, condition, self.scale, clip)

    def _noise(self, network: Network, condition: Condition, scale: float, clip: bool) -> NoiseModel:
        def noise(x: Tensor, t: Tensor, level: Level, rows: Tensor) -> Tensor:
            guided = condition.guided[rows].nonzero()[:, 0]
            labels, null = condition.labels[rows], condition.null(rows)
            if scale == 1 and condition.mask is None:
                null[guided] = labels[guided]
                eps = network(x, t, null)
            else:
                both = torch.cat([torch.arange(len(rows)), guided])
                eps, towards = network(x[both], t[both], torch.cat([null, labels[guided]])).split([len(rows), len(guided)])
                steered = eps[guided] + scale * (towards - eps[guided])
                if condition.mask is not None:
                    steered = torch.where(condition.mask[rows[guided]], steered, eps[guided])
                eps = eps.index_copy(0, guided.to(eps.device), steered)
            return clip_eps(x, eps, level) if clip else eps

        return noise
