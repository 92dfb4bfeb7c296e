"""TODO."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .classifiers.classifier import View
from .errors import InputError

Gate = Callable[["Prediction"], Tensor]
"""Which images [N], bool, go through the diffusion model, by what the classifier says of them."""


@dataclass(frozen=True)
class Prediction:
    """Stage 1, classify.

    Attributes:
        view: logits, features and feature maps of the images.
        predicted: [N] the class that the classifier gives.
        labels: [N] the class to reconstruct under: the predicted one, or an oracle's.
        cam: the classifier's activation [N, 1, H, W] in [0, 1] for the label, where the guidance asks for it.
        baselines: what the classifier alone says, each [N], higher = more in-distribution.
    """

    view: View
    predicted: Tensor
    labels: Tensor
    cam: Tensor | None
    baselines: dict[str, Tensor]


@dataclass(frozen=True)
class Inversion:
    """Stage 2, invert.

    Attributes:
        noise: [N, C, h, w].
        stop_index: [N] the schedule index that inversion stopped at, on the CPU.
    """

    noise: Tensor
    stop_index: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """Stage 3, reconstruct. Images are [N, 3, H, W] in [0, 1].

    Attributes:
        guided: under the label.
        unguided: without guidance from the same noise; None unless the detector compares to it.
    """

    guided: Tensor
    unguided: Tensor | None


@dataclass(frozen=True)
class Detection:
    """What the detector says of images.

    Attributes:
        labels: [N] the class each was reconstructed under.
        reconstructions: [N, 3, H, W] in [0, 1].
        scores: each discrepancy and each baseline [N], higher = more in-distribution.
        prediction: stage 1, with the classifier's logits and the activation map.
        stop_index: [N] where inversion stopped.
        unguided: the unguided reconstructions, where there are any.
        nfe: [N] evaluations of the diffusion model for each image; None where they were not counted.

    Where a gate has kept an image from the diffusion model, its reconstructions and discrepancies are NaN, its stop index -1.
    """

    labels: Tensor
    reconstructions: Tensor
    scores: dict[str, Tensor]
    prediction: Prediction
    stop_index: Tensor
    unguided: Tensor | None
    nfe: Tensor | None = None


def _of_rows(prediction: Prediction, rows: Tensor) -> Prediction:
    """Of some of the images."""
    view = prediction.view
    return Prediction(
        View(view.logits[rows], view.features[rows], [maps[rows] for maps in view.maps]),
        prediction.predicted[rows],
        prediction.labels[rows],
        None if prediction.cam is None else prediction.cam[rows],
        {name: values[rows] for name, values in prediction.baselines.items()},
    )


def as_batch(batch: Any, *needed: str) -> Mapping[str, Any]:
    """A loader's batch as a dict: one already, a pair (images, labels), or images.

    Raises:
        InputError: it is something else, or has not all that is needed.
    """
    if isinstance(batch, Tensor):
        batch = {"image": batch}
    elif (
        isinstance(batch, list | tuple)
        and batch
        and isinstance(batch[0], Tensor)
        and batch[0].ndim == 4
    ):
        batch = dict(zip(("image", "label"), batch, strict=False))
    if not isinstance(batch, Mapping):
        raise InputError(
            f"a batch is a {type(batch).__name__}, expected images [N, 3, H, W], (images, labels), or a dict with these"
        )
    for name in needed:
        if name not in batch:
            raise InputError(f"a batch has no {name!r}; it has: {', '.join(map(str, batch))}")
    return batch
