"""Adaptive early stop: invert an image only until it is noisy enough (DiffGuard, section 3.4)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor


class Similarity(Protocol):
    """How alike x and an image are; what is computed of the image alone is computed once."""

    def reference(self, images: Tensor) -> list[Tensor]:
        """What is kept of images [N, C, H, W] in [-1, 1], each [N, ...]."""

    def __call__(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """[n], higher = more alike."""


class PSNR:
    """20 log10(255 / rmse) [N] of [-1, 1] images as they are: the original puts the peak at 255, so values are 47 and up."""

    def reference(self, images: Tensor) -> list[Tensor]:
        return [images]

    def __call__(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        return 20 * torch.log10(255 / (x - reference[0]).square().mean(dim=(1, 2, 3)).sqrt())


class EarlyStop:
    """Says which rows are done: those for which any similarity to the input is below its threshold.

    Args:
        thresholds: similarity name to threshold.
        similarities: by name.
        crop: taken of x and the image before they are compared.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float],
        similarities: Mapping[str, Similarity],
        crop: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        self.crop = crop
        self.tests = [(similarities[name], threshold) for name, threshold in thresholds.items()]

    def reference(self, images: Tensor) -> list[Tensor]:
        """What is kept of the images [N, C, H, W] in [-1, 1] that are inverted, each [N, ...]."""
        images = self.crop(images)
        kept = [similarity.reference(images) for similarity, _ in self.tests]
        self.counts = [len(tensors) for tensors in kept]
        return [tensor for tensors in kept for tensor in tensors]

    def done(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Done or not: bool [n], of x [n, C, H, W] after a step."""
        x, left = self.crop(x), iter(reference)
        found = [
            similarity(x, list(islice(left, count))) < threshold
            for (similarity, threshold), count in zip(self.tests, self.counts, strict=True)
        ]
        return torch.stack(found).any(dim=0)
