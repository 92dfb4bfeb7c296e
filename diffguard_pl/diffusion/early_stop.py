"""Adaptive early stop: invert an image only until it is noisy enough (DiffGuard, section 3.4)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Similarity = Callable[[Tensor, Tensor], Tensor]


def psnr(x: Tensor, image: Tensor) -> Tensor:
    """20 log10(255 / rmse) [N] of [-1, 1] images as they are: the original puts the peak at 255, so values are 47 and up."""
    return 20 * torch.log10(255 / (x - image).square().mean(dim=(1, 2, 3)).sqrt())


class EarlyStop:
    """Says which rows are done: those for which any similarity to the input is below its threshold.

    Args:
        images: the inverted images [N, C, H, W] in [-1, 1].
        thresholds: similarity name to threshold.
        similarities: name to function of (x, image) -> [N].
        crop: taken of x and the image before they are compared.
    """

    def __init__(
        self,
        images: Tensor,
        thresholds: Mapping[str, float],
        similarities: Mapping[str, Similarity],
        crop: Callable[[Tensor], Tensor] = lambda x: x,
    ):
        self.images, self.crop = crop(images), crop
        self.tests = [(similarities[name], threshold) for name, threshold in thresholds.items()]

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """Done or not: bool [n], of x [n, C, H, W] after a step and their rows [n]."""
        x, images = self.crop(x), self.images[rows]
        return torch.stack([similarity(x, images) < threshold for similarity, threshold in self.tests]).any(dim=0)
