"""Data that flows between the stages: Prediction, Inversion, Reconstruction, Detection."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from .classifiers.classifier import View
from .diffusion.path import Path
from .errors import InputError

Gate = Callable[["Prediction"], Tensor]
"""Maps a Prediction to a bool mask [N] of the images to run through the diffusion model."""


@dataclass(frozen=True)
class PathGate:
    """Decides which images are reconstructed, after a few inversion steps.

    Attributes:
        decide: Maps the paths of N images to a bool mask [N] of those to reconstruct.
        steps: Number of inversion steps after which it decides.
    """

    decide: Callable[[Path], Tensor]
    steps: int


class Gates(NamedTuple):
    """Decisions on the way of an image; None where there is none.

    Attributes:
        diffuses: Decides which images are diffused.
        reconstructs: Decides which of these are reconstructed.
    """

    diffuses: Gate | None = None
    reconstructs: PathGate | None = None


@dataclass(frozen=True)
class Prediction:
    """Result of stage 1, classify.

    Attributes:
        view: Logits, features and feature maps of the images.
        predicted: [N] classes that the classifier predicts.
        labels: [N] classes to reconstruct under: the predicted ones, or oracle labels.
        cam: [N, 1, H, W] Grad-CAM activation for the labels in [0, 1]. None unless guidance uses
            it.
        baselines: [N] scores of the classifier alone by name, higher = more in-distribution.
    """

    view: View
    predicted: Tensor
    labels: Tensor
    cam: Tensor | None
    baselines: dict[str, Tensor]

    def select(self, rows: Tensor) -> "Prediction":
        """Return the prediction of some of the images."""
        logits, features, maps, member_logits = self.view
        return Prediction(
            View(
                logits[rows],
                features[rows],
                [layer[rows] for layer in maps],
                None if member_logits is None else member_logits[rows],
            ),
            self.predicted[rows],
            self.labels[rows],
            None if self.cam is None else self.cam[rows],
            {name: scores[rows] for name, scores in self.baselines.items()},
        )

    def without_maps(self) -> "Prediction":
        """Return the prediction without its feature maps, which are large."""
        return replace(self, view=self.view._replace(maps=[]))


@dataclass(frozen=True)
class Inversion:
    """Result of stage 2, invert.

    Attributes:
        noise: [N, C, h, w].
        stop_index: [N] schedule index at which inversion stopped, on the CPU.
        path: Statistics of its steps. None unless a path score needs them.
    """

    noise: Tensor
    stop_index: Tensor
    path: Path | None = None


@dataclass(frozen=True)
class Reconstruction:
    """Result of stage 3, reconstruct. Images are [N, 3, H, W] in [0, 1].

    Attributes:
        guided: Reconstructions under the label.
        unguided: Reconstructions without guidance from the same noise. None unless compared to.
        latents: [N, C, h, w] what the guided ones were decoded from. None if not at hand.
        unguided_latents: The same of the unguided ones.
    """

    guided: Tensor
    unguided: Tensor | None
    latents: Tensor | None = None
    unguided_latents: Tensor | None = None


@dataclass(frozen=True)
class Detection:
    """Result of stage 4, compare, with all that led to it.

    Where a gate has kept an image from the diffusion model, its reconstructions, discrepancies and
    path scores are NaN, its stop index is -1 and its NFE 0. Where one has kept it from being
    reconstructed, it has path scores and NFE.

    Attributes:
        labels: [N] classes that the images were reconstructed under.
        reconstructions: [N, 3, H, W] in [0, 1], under the label. None with ``compare_to: none``.
        scores: [N] each discrepancy, path score and baseline by name, higher = more
            in-distribution.
        prediction: Result of stage 1.
        stop_index: [N] schedule index at which inversion stopped.
        unguided: [N, 3, H, W] reconstructions without guidance. None unless compared to.
        nfe: [N] network evaluations (NFE) of each image. None if not counted.
        path: Statistics of its steps. None unless a path score needs them.
    """

    labels: Tensor
    reconstructions: Tensor | None
    scores: dict[str, Tensor]
    prediction: Prediction
    stop_index: Tensor
    unguided: Tensor | None
    nfe: Tensor | None = None
    path: Path | None = None


def as_batch(batch: Any, *needed: str) -> Mapping[str, Any]:
    """Return a dataloader's batch as a dict.

    Args:
        batch: A dict, a pair (images, labels), or images [N, 3, H, W].
        needed: Keys that it must have.

    Raises:
        InputError: The batch is something else, or a key is missing.
    """
    if isinstance(batch, Tensor):
        batch = {"image": batch}
    elif isinstance(batch, list | tuple) and _begins_with_images(batch):
        batch = dict(zip(("image", "label"), batch, strict=False))
    if not isinstance(batch, Mapping):
        raise InputError(
            f"batch: must not be a {type(batch).__name__}; yield images [N, 3, H, W], "
            "(images, labels), or a dict with 'image' and 'label'"
        )
    for name in needed:
        if name not in batch:
            keys = ", ".join(map(str, batch))
            raise InputError(f"batch: key {name!r} not found; it has: {keys}")
    return batch


def _begins_with_images(batch: list | tuple) -> bool:
    return bool(batch) and isinstance(batch[0], Tensor) and batch[0].ndim == 4
