"""Guidance under the true and under a false label, with each part left out (paper, Fig. 6).

DiffGuard rests on this: under its true label an image comes back unchanged, under a false one it
comes back as something else. Each part of the guidance should widen the difference.
"""

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..errors import InputError
from ..metrics.label_effect import LabelEffect, label_effect
from ..random_by_index import random_by_index
from ..stages import Detection
from .analysis import AnalysisModule
from .oracle import oracle_labels

COMPLETE = "complete"
"""Name of the guidance with all of its parts."""


class LabelAnalysis:
    """Settings of the analysis of labels.

    Args:
        images: Number of in-distribution images, evenly spaced; ``data.limit`` may lower it.
        pictures: Number of them to draw, the first ones.
    """

    def __init__(self, images: int = 64, pictures: int = 4):
        if images < 1:
            raise InputError(f"analysis.images={images}: must be at least 1")
        if pictures < 1:
            raise InputError(f"analysis.pictures={pictures}: must be at least 1")
        self.images, self.pictures = images, pictures


@dataclass
class LabelledReconstructions:
    """An image and its reconstructions under two labels, all [3, H, W] in [0, 1] on the CPU.

    Attributes:
        index: Index of the image in its dataset.
        image: The input.
        labels: True label and false label.
        unguided: Reconstruction without guidance. None unless ``compare_to: unguided``.
        guided: By what is left out of the guidance: reconstructions under the true and the false
            label, each with its primary score.
    """

    index: int
    image: Tensor
    labels: tuple[int, int]
    unguided: Tensor | None
    guided: dict[str, list[tuple[Tensor, float]]]


class LabelEffectModule(AnalysisModule):
    """Reconstruction under true and false labels, for ``Trainer.test``.

    Args:
        diffguard: Method whose guidance is analysed.
        analysis: Settings.
        data: Data module; its in-distribution dataset is used, which needs labels.
        tf32: See :class:`~diffguard_pl.DiffGuardModule`.

    Attributes:
        effects: The result, of all ranks: for each guidance and discrepancy.
        drawn: Images of this rank to draw.
    """

    def __init__(
        self, diffguard: DiffGuard, analysis: LabelAnalysis, data: OODData, tf32: bool = True
    ):
        data.limit = min(data.limit or analysis.images, analysis.images)
        super().__init__(diffguard, data, [next(iter(data.datasets()))], tf32)
        self.pictures = analysis.pictures
        self.scores = diffguard.discrepancies.names
        self.variants = {COMPLETE: diffguard}
        for left_out, guidance in diffguard.guidance.ablations().items():
            variant = copy(diffguard)  # shares the networks
            variant.guidance = guidance
            self.variants[left_out] = variant
        self.similarities = PerImage()
        # A rank without images needs something to gather, too.
        nothing = torch.zeros(0, 2, len(self.variants), len(self.scores))
        self.similarities.update(nothing, torch.zeros(0, dtype=torch.long))
        self.effects: list[LabelEffect] = []
        self.drawn: list[LabelledReconstructions] = []

    def measure(self, batch: dict[str, Any], dataset: str) -> None:
        images, classes = batch["image"], self.diffguard.classifier.num_classes
        true = oracle_labels("ind", batch, dataset, True, classes)
        if true is None or bool((true < 0).any()):
            raise InputError(f"{dataset}: has images without labels; choose a dataset with labels")
        false = false_labels(dataset, batch["index"], true, classes)

        # Both labels of all images in one batch, for each kind of guidance.
        detections = {
            left_out: variant(torch.cat([images, images]), torch.cat([true, false]))
            for left_out, variant in self.variants.items()
        }
        values = torch.stack(
            [
                torch.stack([detection.scores[name] for name in self.scores], dim=1)
                for detection in detections.values()
            ],
            dim=1,
        )
        self.similarities.update(torch.stack(values.chunk(2), dim=1), batch["index"])

        for row in range(min(len(images), self.pictures - len(self.drawn))):
            self.drawn.append(self._to_draw(batch, row, (true, false), detections))

    def _to_draw(
        self,
        batch: dict[str, Any],
        row: int,
        labels: tuple[Tensor, Tensor],
        detections: dict[str, Detection],
    ) -> LabelledReconstructions:
        """Return one image of a batch with its reconstructions.

        Args:
            batch: The batch.
            row: The image's place in it.
            labels: True and false labels [N].
            detections: Results [2N] by what is left out of the guidance.
        """
        images, primary = batch["image"], self.scores[0]
        unguided = detections[COMPLETE].unguided
        guided: dict[str, list[tuple[Tensor, float]]] = {}
        for left_out, detection in detections.items():
            guided[left_out] = []
            for place in (row, len(images) + row):
                assert detection.reconstructions is not None
                score = float(detection.scores[primary][place])
                guided[left_out].append((detection.reconstructions[place].cpu(), score))
        return LabelledReconstructions(
            index=int(batch["index"][row]),
            image=images[row].cpu(),
            labels=(int(labels[0][row]), int(labels[1][row])),
            unguided=None if unguided is None else unguided[row].cpu(),
            guided=guided,
        )

    def summarise(self) -> None:
        values = self.similarities.compute().numpy()  # [N, 2, variants, scores]
        if len(values) == 0:
            return
        for v, left_out in enumerate(self.variants):
            for k, score in enumerate(self.scores):
                true, false = values[:, :, v, k].T
                self.effects.append(label_effect(left_out, score, true, false))


class PerImage(Metric):
    """Numbers of each image in float64, of all ranks, in the order of the images."""

    values: list[Tensor]
    indices: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("values", "indices"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, values: Tensor, indices: Tensor) -> None:
        """Add values [N, ...] of the images with indices [N]."""
        self.values.append(values.double())
        self.indices.append(torch.as_tensor(indices).to(values.device))

    def compute(self) -> Tensor:
        """Return the values [N, ...] on the CPU."""
        order = dim_zero_cat(self.indices).argsort()
        return dim_zero_cat(self.values)[order].cpu()


def false_labels(dataset: str, indices: Any, true: Tensor, num_classes: int) -> Tensor:
    """Draw a label [N] for each image that is not its own, the same in every run.

    Raises:
        InputError: The classifier has one class.
    """
    if num_classes < 2:
        raise InputError("model.classifier: has one class, so no label is false; use another one")
    shifts = [
        1 + random_by_index(dataset, index).randrange(num_classes - 1)
        for index in torch.as_tensor(indices).tolist()
    ]
    return (true + torch.tensor(shifts, device=true.device)) % num_classes
