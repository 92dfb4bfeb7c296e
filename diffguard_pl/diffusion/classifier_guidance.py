"""Clean-gradient guidance by the classifier under protection (paper, section 3.2.1).

Classifier guidance (equation 4; Dhariwal & Nichol 2021, algorithm 2), with the gradient g of a
classifier that has never seen noise (equation 7):

    eps_hat(x_t, y) = eps(x_t) - sqrt(1 - alpha_bar_t) s g
    g = grad_x_in sum log p(y | cutouts of x_in)
    x_in = f x0hat + (1 - f) x_t,  f = sqrt(1 - alpha_bar_t)

The classifier sees x0hat, the clean image that the network predicts from x_t, mixed with x_t. The
gradient is taken with respect to x_in, so nothing is ever back-propagated through the diffusion
network, and x0hat comes from the step's own network call.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, log_softmax

from ..dtypes import at_least_float32
from ..errors import InputError
from .ddim import Level, predict_x0
from .guidance import (
    Guidance,
    GuidanceInputs,
    GuidedNoise,
    GuidingClassifier,
    Network,
    changed,
    checked_interval,
    clip_where,
)

GRADIENT_SCALE = 1024.0
"""Keeps the gradient of a half-precision classifier from underflow. A power of two: exact."""


class ClassifierGuidance(Guidance):
    """Clean-gradient guidance by the classifier under protection (paper, section 3.2.1).

    Args:
        scale: Scale s of the gradient.
        cutouts: Number of random crops that the classifier sees at each step, whose
            log-probabilities are summed. 0: the whole image.
        cutout_size: Side of the smallest crop, in pixels of the diffusion model; all crops are
            resized to it.
        x0hat: Whether the classifier sees the predicted clean image, mixed with x_t. If false, it
            sees x_t.
        seed: Seed of the crop sequence, which is the same for every image and every batch.
        interval: Fractions of the training schedule, 0 (clean) to 1 (noise), between which
            denoising is guided.
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
        if cutouts < 0:
            raise InputError(f"guidance.cutouts={cutouts}: must be at least 0")
        if cutout_size < 1:
            raise InputError(f"guidance.cutout_size={cutout_size}: must be at least 1")
        self.scale, self.cutouts, self.cutout_size = scale, cutouts, cutout_size
        self.x0hat, self.seed = x0hat, seed
        self.interval = checked_interval(interval)

    def ablations(self) -> dict[str, Guidance]:
        # The parts of the clean gradient; without both it is classifier guidance as of equation 4.
        found: dict[str, Guidance] = {}
        if self.x0hat:
            found["no x0hat"] = changed(self, x0hat=False)
        if self.cutouts:
            found["no cutouts"] = changed(self, cutouts=0)
        if len(found) == 2:
            found["neither"] = changed(self, x0hat=False, cutouts=0)
        return found

    def crops(self, steps: int, image_size: int) -> Tensor | None:
        if self.cutouts == 0:
            return None
        sequence = crop_sequence(image_size, self.cutouts, self.cutout_size, self.seed)
        return torch.tensor([[crop[:3] for crop in next(sequence)] for _ in range(steps)])

    def predict_eps(
        self,
        network: Network,
        x: Tensor,
        t: Tensor,
        level: Level,
        inputs: GuidanceInputs,
        classifier: GuidingClassifier,
    ) -> GuidedNoise:
        n, g = len(t), len(inputs.labels)

        # One network call. The clean gradient is taken at the unclamped x0hat.
        eps = network(x[:n], t, inputs.network_labels)
        guided_level = level.select(slice(g))
        x0 = predict_x0(x[:g], eps[:g], guided_level)

        # The step itself uses the clamped x0.
        eps = torch.cat([eps, eps[: inputs.unguided_copies]])
        eps = clip_where(inputs.clip, x, eps, level)
        unguided = eps[:g]
        if g == 0:
            return GuidedNoise(eps, unguided, unguided)

        # eps_hat = eps - sqrt(1 - alpha_bar) s g
        gradient = self.gradient(x[:g], x0, guided_level, inputs.labels, inputs.crops, classifier)
        pull = -guided_level.noise * gradient
        return GuidedNoise(torch.cat([unguided + inputs.scale * pull, eps[g:]]), unguided, pull)

    def gradient(
        self,
        x: Tensor,
        x0: Tensor,
        level: Level,
        labels: Tensor,
        crops: Tensor | None,
        classifier: GuidingClassifier,
    ) -> Tensor:
        """Return the clean gradient g [n, 3, H, W], without its scale.

        Args:
            x: [n, 3, H, W] states.
            x0: [n, 3, H, W] unclamped prediction of the clean images.
            level: Signal and noise level of x.
            labels: [n] classes y.
            crops: [n, cutouts, 3] x, y and side of the squares. None: the whole image.
            classifier: Classifier under protection.
        """
        # x_in = sqrt(1 - alpha_bar) x0hat + (1 - sqrt(1 - alpha_bar)) x_t
        x_in = level.noise * x0 + (1 - level.noise) * x if self.x0hat else x
        with torch.inference_mode(False), torch.enable_grad():
            x_in = x_in.clone().requires_grad_()

            # Cutouts of the image in [0, 1], in the size that the classifier takes.
            views = (x_in + 1) / 2
            if crops is not None:
                views = crop_and_resize(views, crops, self.cutout_size)
                if self.cutout_size != classifier.input_size:
                    views = interpolate(views, classifier.input_size)

            # Sum of log p(y | view) over all views.
            log_p = log_softmax(at_least_float32(classifier.logits(views)), dim=-1)
            views_per_image = 1 if crops is None else crops.shape[1]
            chosen = log_p.gather(1, labels.clone().repeat_interleave(views_per_image)[:, None])

            # Gradient with respect to x_in: the diffusion network is not part of the graph.
            (gradient,) = torch.autograd.grad(chosen.sum() * GRADIENT_SCALE, x_in)
        return gradient / GRADIENT_SCALE


def crop_and_resize(images: Tensor, crops: Tensor, size: int) -> Tensor:
    """Return crops of images, which may differ for each image, resized by nearest neighbour.

    The result is exactly that of ``interpolate``.

    Args:
        images: [n, C, H, W].
        crops: [n, cutouts, 3] x, y and side of the squares.
        size: Side of the result.

    Returns:
        [n * cutouts, C, size, size].
    """
    channels, width = images.shape[1], images.shape[-1]
    x, y, side = crops.unbind(dim=-1)

    # Offsets of the nearest source pixels along one side, [n, cutouts, size].
    grid = torch.arange(size, device=crops.device, dtype=torch.float32)
    offsets = grid * (side.float() / size)[..., None]
    offsets = offsets.floor().long().minimum(side[..., None] - 1)

    # Their positions in the flattened image, [n, cutouts, size, size].
    rows, columns = y[..., None] + offsets, x[..., None] + offsets
    pixels = rows[..., None] * width + columns[..., None, :]

    # Gather them from every channel.
    flat = pixels.flatten(1)[:, None].expand(-1, channels, -1)
    taken = images.flatten(2).gather(2, flat)
    return taken.unflatten(2, pixels.shape[1:]).transpose(1, 2).flatten(0, 1)


class Crop(NamedTuple):
    """A square of ``side`` pixels at (x, y), resized to ``size`` pixels by nearest neighbour."""

    x: int
    y: int
    side: int
    size: int

    def apply(self, images: Tensor) -> Tensor:
        """Return the crop of images [n, C, H, W], [n, C, size, size]."""
        bottom, right = self.y + self.side, self.x + self.side
        return interpolate(images[:, :, self.y : bottom, self.x : right], self.size)


def crop_sequence(image_size: int, count: int, size: int, seed: int) -> Iterator[list[Crop]]:
    """Yield the crops of each step, without end, drawn in the order of the original implementation.

    Args:
        image_size: Side of the images.
        count: Number of crops of a step.
        size: Side of the smallest crop, to which all are resized.
        seed: Seed of the sequence.
    """
    generator = torch.Generator().manual_seed(seed)
    smallest = min(image_size, size)
    while True:
        crops = []
        for _ in range(count):
            # Side between the smallest and the whole image, then a uniform offset.
            side = int(torch.rand([], generator=generator) * (image_size - smallest) + smallest)
            x = int(torch.randint(0, image_size - side + 1, (), generator=generator))
            y = int(torch.randint(0, image_size - side + 1, (), generator=generator))
            crops.append(Crop(x, y, side, size))
        yield crops
