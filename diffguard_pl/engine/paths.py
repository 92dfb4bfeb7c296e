"""Paths of many images, for scores that are fitted to them."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion.path import Path
from .engine import Engine
from .method import Method
from .trajectory import Request


class FoundPath(NamedTuple):
    """Path of a batch of images.

    Attributes:
        path: Statistics of their steps.
        measured: Features [N, F] of scores with network evaluations of their own, by name.
        known: Whether the diffusion model has a class for the label of each, bool [N]; nothing is
            to be made of the others. None: all.
    """

    path: Path | None
    measured: dict[str, Tensor]
    known: Tensor | None


@torch.no_grad()
def paths(
    diffguard: Method, batches: Iterable[Tensor], denoise: bool, measured: Collection[str]
) -> Iterator[FoundPath]:
    """Yield the path of each batch of images, under their predicted labels, and what is measured.

    No image stops before the steps that path scores look at.

    Args:
        diffguard: DiffGuard.
        batches: Images [N, 3, H, W] in [0, 1].
        denoise: Whether to reconstruct the images, too.
        measured: Names of the scores with network evaluations of their own to run.
    """
    sampler = diffguard.sampler()
    if not denoise:
        settings = replace(sampler.settings, compare_to="none")
        sampler = replace(sampler, settings=settings, early_stop=None)
    engine = Engine(sampler, diffguard.slots)

    for images in batches:
        prediction = diffguard.classify(images)
        x = diffguard.encode(images)
        found = diffguard.measure(images, x, prediction.labels, measured)
        mask = diffguard.latent_mask(prediction, x)
        known = diffguard.has_counterpart(prediction)
        engine.submit(Request(x, prediction.labels, mask, payload=(found, known)))
        yield from (FoundPath(request.path, *request.payload) for request in engine.run())
    yield from (FoundPath(request.path, *request.payload) for request in engine.run(drain=True))
