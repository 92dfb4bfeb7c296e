"""Paths of many images, for scores that are fitted to them."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..diffusion.path import Path
from .engine import Engine
from .method import Method
from .trajectory import Request


@torch.no_grad()
def paths(
    diffguard: Method, batches: Iterable[Tensor], denoise: bool, measured: Collection[str]
) -> Iterator[tuple[Path | None, dict[str, Tensor]]]:
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
        engine.submit(Request(x, prediction.labels, mask, payload=found))
        yield from ((request.path, request.payload) for request in engine.run())
    yield from ((request.path, request.payload) for request in engine.run(drain=True))
