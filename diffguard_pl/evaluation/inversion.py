"""Similarity of images to their states along the inversion, for each dataset (paper, Fig. 4).

The paper observes that in-distribution images lose similarity faster than others, and stops the
inversion by it. The curves show where a threshold of ``early_stop`` would stop the images.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..diffusion.ddim import Step
from ..diffusion.early_stop import METRICS, PSNR, LearnedSimilarity, Similarity
from ..errors import InputError, choose
from ..metrics.inversion import InversionPoint
from ..scores.discrepancies import DISCREPANCIES, Discrepancies, Seen
from ..scores.piq_scores import FeatureScore, SharedVGG16
from .analysis import AnalysisModule

OF_IMAGES = [name for name, definition in DISCREPANCIES.items() if definition.needs == "images"]
SIMILARITIES = list(dict.fromkeys([*METRICS, *OF_IMAGES]))
"""Names of the similarities to choose from: those of early stop, and discrepancies of images."""


class InversionAnalysis:
    """Settings of the analysis of inversion.

    Args:
        similarities: Similarities to measure: psnr, dists and lpips as early stop computes them
            (psnr in dB with a peak of 255), or any discrepancy that compares images alone.
    """

    def __init__(self, similarities: Sequence[str] = ("psnr", "dists")):
        if not similarities:
            raise InputError("analysis.similarities=[]: must not be empty; add psnr")
        for name in similarities:
            choose("analysis.similarities", name, SIMILARITIES)
        self.similarities = list(dict.fromkeys(similarities))


class InversionModule(AnalysisModule):
    """Similarity along the inversion, for ``Trainer.test``.

    All images take all inversion steps; ``early_stop`` is not applied.

    Args:
        diffguard: Method whose inversion is analysed.
        analysis: Settings.
        data: Data module; all of its datasets are used.
        tf32: See :class:`~diffguard_pl.DiffGuardModule`.

    Attributes:
        thresholds: Thresholds of early stop in the settings, by name of the similarity.
        points: The result, of all ranks: one point per dataset and step.
    """

    def __init__(
        self,
        diffguard: DiffGuard,
        analysis: InversionAnalysis,
        data: OODData,
        tf32: bool = True,
    ):
        unstopped = copy(diffguard)  # shares the networks
        unstopped.sampling = replace(diffguard.sampling, early_stop={})
        super().__init__(unstopped, data, list(data.datasets()), tf32)
        self.thresholds = dict(diffguard.sampling.early_stop)
        vgg16 = SharedVGG16()
        self.names = analysis.similarities
        self.similarities = {name: _similarity(name, vgg16) for name in self.names}
        # Their networks follow the module to its device.
        self.networks = torch.nn.ModuleList(
            part for part in map(_network, self.similarities.values()) if part is not None
        )
        self.steps = unstopped.sampling.inversion_steps
        self.moments = Moments((len(self.datasets), self.steps, len(self.names)))
        self.points: list[InversionPoint] = []

    def measure(self, batch: dict[str, Any], dataset: str) -> None:
        images, backbone = batch["image"], self.diffguard.backbone
        prediction = self.diffguard.classify(images)

        # The image that the states are compared to, in [-1, 1]: as the diffusion model sees it.
        clean = images * 2 - 1
        if backbone.is_pixel_space:
            clean = backbone.remove_padding(self.diffguard.encode(images))
        references = [similarity.reference(clean) for similarity in self.similarities.values()]

        def compare(step: Step) -> None:
            x = step.x
            x = backbone.remove_padding(x) if backbone.is_pixel_space else backbone.decode(x)
            values = [
                similarity(x, [tensor[step.batch_index] for tensor in reference])
                for similarity, reference in zip(
                    self.similarities.values(), references, strict=True
                )
            ]
            # All images of the batch are at the same step.
            place = self.datasets.index(dataset), int(step.index[0])
            self.moments.update(place, torch.stack(values, dim=1))

        self.diffguard.invert(images, prediction, compare)

    def summarise(self) -> None:
        counts, mean, std = self.moments.compute()
        timesteps = self.diffguard.schedule.timesteps.tolist()
        for d, dataset in enumerate(self.datasets):
            for step in range(self.steps):
                means = dict(zip(self.names, mean[d, step].tolist(), strict=True))
                stds = dict(zip(self.names, std[d, step].tolist(), strict=True))
                images = int(counts[d, step, 0])
                point = InversionPoint(dataset, step, timesteps[step], images, means, stds)
                self.points.append(point)


class Moments(Metric):
    """Mean and standard deviation of columns of numbers, in float64, over all ranks.

    Args:
        shape: Shape of the table of places; its last axis is that of the columns.
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        for name in ("counts", "sums", "squares"):
            zeros = torch.zeros(shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    counts: Tensor
    sums: Tensor
    squares: Tensor

    def update(self, place: tuple[int, ...], values: Tensor) -> None:
        """Add values [n, columns] at one place."""
        values = values.double()
        self.counts[place] += len(values)
        self.sums[place] += values.sum(dim=0)
        self.squares[place] += values.square().sum(dim=0)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return number, mean and standard deviation (0 of one value), each of the whole shape."""
        mean = self.sums / self.counts
        spread = (self.squares - self.counts * mean.square()).clamp(min=0)
        return self.counts, mean, (spread / (self.counts - 1).clamp(min=1)).sqrt()

    def set_dtype(self, dst_type: Any) -> "Moments":
        return self  # float64 in any precision of the networks


class _ImageSimilarity:
    """A discrepancy that compares images alone, of states that are clamped to [-1, 1]."""

    def __init__(self, name: str, vgg16: SharedVGG16):
        self.name, self.metric = name, Discrepancies([name], vgg16)

    def reference(self, images: Tensor) -> list[Tensor]:
        return [_unit(images)]

    def __call__(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        nothing = torch.empty(0)
        a, b = (Seen(image, nothing, nothing, []) for image in (reference[0], _unit(x)))
        return self.metric(a, b)[self.name]


def _unit(images: Tensor) -> Tensor:
    return ((images + 1) / 2).clamp(0, 1)


def _similarity(name: str, vgg16: SharedVGG16) -> Similarity:
    if name == "psnr":
        return PSNR()
    if name in METRICS:
        return LearnedSimilarity(FeatureScore(name, vgg16))
    return _ImageSimilarity(name, vgg16)


def _network(similarity: Similarity) -> torch.nn.Module | None:
    metric = getattr(similarity, "metric", None)
    return metric if isinstance(metric, torch.nn.Module) else None
