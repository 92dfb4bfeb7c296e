"""Adaptive early stop: invert each image only until it is noisy enough (paper, section 3.2.1).

stop at the first step after which sim(x_t, x_0) < threshold, for any of the similarities
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

METRICS = ["psnr", "dists", "lpips"]
"""Names of the similarities that can stop an inversion."""


class Similarity(Protocol):
    """Similarity of states to an image; what depends on the image alone is computed once."""

    def reference(self, images: Tensor) -> list[Tensor]:
        """Return what to keep of images [N, C, H, W] in [-1, 1], each tensor [N, ...]."""

    def __call__(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Return the similarity [n] of x [n, C, H, W] to its images, higher = more alike."""


class PSNR:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]: 20 log10(255 / rmse).

    The original puts the peak at 255, whatever the range of the images, so values are above 47.
    """

    def reference(self, images: Tensor) -> list[Tensor]:
        return [images]

    def __call__(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        rmse = (x - reference[0]).square().mean(dim=(1, 2, 3)).sqrt()
        return 20 * torch.log10(255 / rmse)


class FeatureDistance(Protocol):
    """A learned distance in two parts: features of images, and the distance of features."""

    def features(self, images: Tensor) -> list[Tensor]: ...

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor: ...


class LearnedSimilarity:
    """DISTS or LPIPS as 1 - distance of (x + 1) / 2, which the original does not clamp to [0, 1].

    Args:
        metric: The learned distance.
    """

    def __init__(self, metric: FeatureDistance):
        self.metric = metric

    def reference(self, images: Tensor) -> list[Tensor]:
        return self.metric.features((images + 1) / 2)

    def __call__(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        return 1 - self.metric.distance(self.metric.features((x + 1) / 2), reference)


class EarlyStop:
    """Criterion that stops the inversion of an image when it is no longer similar to its input.

    Args:
        thresholds: Threshold of each similarity, by name.
        similarities: Similarities by name.
        crop: Applied to states and images before they are compared.
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
        """Return what to keep of the inputs [N, C, H, W] in [-1, 1], each tensor [N, ...]."""
        # One flat list, so that the engine can keep its rows in slots.
        images = self.crop(images)
        kept = [similarity.reference(images) for similarity, _ in self.tests]
        self.tensors_per_test = [len(tensors) for tensors in kept]
        return [tensor for tensors in kept for tensor in tensors]

    def should_stop(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Return a bool mask [n] of the states to stop.

        Args:
            x: [n, C, H, W] states after a step.
            reference: Rows of :meth:`reference` that belong to these states.
        """
        # Each similarity has its part of the reference tensors.
        x = self.crop(x)
        remaining = iter(reference)
        below = []
        for (similarity, threshold), count in zip(self.tests, self.tensors_per_test, strict=True):
            below.append(similarity(x, list(islice(remaining, count))) < threshold)

        # Any of them stops the inversion.
        return torch.stack(below).any(dim=0)
