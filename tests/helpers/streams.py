"""Ways to run DiffGuard in tests of the engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffguard_pl import Classifier, Detection, DiffGuard
from diffguard_pl.backbones import Backbone
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.diffusion.schedule import Schedule, linear_alpha_bar, respaced


@contextmanager
def changed(diffguard: DiffGuard, guidance: Any = None, slots: int = 64, **sampling) -> Iterator:
    """Change settings of a shared DiffGuard for a while."""
    before = diffguard.sampling, diffguard.guidance, diffguard.slots
    diffguard.sampling = replace(diffguard.sampling, **sampling)
    diffguard.guidance, diffguard.slots = guidance or diffguard.guidance, slots
    try:
        yield diffguard
    finally:
        diffguard.sampling, diffguard.guidance, diffguard.slots = before


def streamed(
    diffguard: DiffGuard,
    images: Tensor,
    batch: int,
    defer_stop_check: bool = False,
    labels: Tensor | None = None,
) -> list[Detection]:
    """Return the detections of batches, which come in the order of submission."""
    stream, found = diffguard.stream(), []
    stream.engine.defer_stop_check = defer_stop_check
    parts = images.split(batch)
    labels_of_parts = [None] * len(parts) if labels is None else labels.split(batch)
    for i, (part, own_labels) in enumerate(zip(parts, labels_of_parts, strict=True)):
        found += stream.push(part, own_labels, tag=i)
    found += stream.drain()
    assert [tag for tag, _ in found] == list(range(len(parts)))
    return [detection for _, detection in found]


class CheapBackbone(Backbone):
    """A pixel-space diffusion model of one convolution, so that the engine takes all the time.

    Attributes:
        batch_sizes: Size of every batch that it was evaluated on.
    """

    is_pixel_space = clip_denoised = True

    def __init__(self):
        super().__init__(16, None, "resize")
        self.alpha_bar = linear_alpha_bar()
        self.network = nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
        self.batch_sizes: list[int] = []

    def schedule(self, steps: int) -> Schedule:
        return respaced(self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, x: Tensor) -> Tensor:
        return x

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.batch_sizes.append(len(x))
        return x.std(dim=(1, 2, 3), keepdim=True) * self.network(x).tanh()


def cheap_diffguard(**settings) -> DiffGuard:
    """Return DiffGuard with the cheap backbone and an untrained classifier for 16 px images."""
    torch.manual_seed(0)
    parts = {
        "classifier": Classifier(SmallResNet(8), input_size=16),
        "backbone": CheapBackbone(),
        "guidance": ClassifierGuidance(cutouts=0),
        "steps": 25,
        "discrepancies": ["l2"],
    }
    return DiffGuard(**parts | settings)
