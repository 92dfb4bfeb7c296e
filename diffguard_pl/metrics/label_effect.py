"""What the label of a reconstruction does to the similarity, one value per kind of guidance."""

from typing import NamedTuple

import numpy as np

from .detection import auroc


class LabelEffect(NamedTuple):
    """Similarity after reconstruction under true and under false labels.

    Attributes:
        guidance: What is left out of the guidance; ``complete`` if nothing.
        score: Name of the discrepancy, higher = more alike.
        images: Number of images.
        true_mean: Mean over the images, each reconstructed under its true label.
        true_std: Their standard deviation, 0 of one image.
        false_mean: Mean over the same images under a false label.
        false_std: Their standard deviation.
        auroc: Probability that the similarity under a true label is the higher one, in [0, 1].
    """

    guidance: str
    score: str
    images: int
    true_mean: float
    true_std: float
    false_mean: float
    false_std: float
    auroc: float


def label_effect(guidance: str, score: str, true: np.ndarray, false: np.ndarray) -> LabelEffect:
    """Compute the effect from the similarities [n] under true and under false labels.

    Raises:
        InputError: A similarity is NaN, or there is none.
    """
    separation = auroc(true, false)
    ddof = min(1, len(true) - 1)
    return LabelEffect(
        guidance,
        score,
        images=len(true),
        true_mean=float(true.mean()),
        true_std=float(true.std(ddof=ddof)),
        false_mean=float(false.mean()),
        false_std=float(false.std(ddof=ddof)),
        auroc=separation,
    )
