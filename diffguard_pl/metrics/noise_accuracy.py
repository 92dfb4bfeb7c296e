"""Accuracy of classifiers on noisy images, one value per step of the schedule."""

from typing import NamedTuple

from torch import Tensor

VOTES = ("mean", "majority", "maximum", "any")
"""Ways to make one prediction of the logits of several crops."""
AGREEMENTS = ("both_correct", "same_error", "disagree")
"""How the predictions of two classifiers relate; each image is one of these."""


class NoiseAccuracy(NamedTuple):
    """Accuracy of the classifier at one step of the schedule.

    Attributes:
        step: Index of the step, from the cleanest on.
        timestep: Timestep of the diffusion model.
        accuracy: Accuracy in [0, 1] by variant; NaN without labels.
        agreement: Fraction of the images by the names of ``AGREEMENTS``; empty without a second
            classifier.
    """

    step: int
    timestep: int
    accuracy: dict[str, float]
    agreement: dict[str, float]


def correct_by_vote(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return which images [N], bool, are classified correctly by their crops, for each vote.

    ``mean`` is the class of the largest mean logit; ``majority`` the class that most crops predict,
    the first of several; ``maximum`` the class of the largest logit of any crop. ``any`` is no
    prediction: the image counts if at least one crop is correct.

    Args:
        logits: Logits [N, crops, classes].
        labels: Labels [N].
    """
    classes = logits.argmax(dim=2)
    # mode() returns the smallest of several values on a CPU; other devices promise nothing
    majority = classes.cpu().mode(dim=1).values.to(labels)
    return {
        "mean": logits.mean(dim=1).argmax(dim=1) == labels,
        "majority": majority == labels,
        "maximum": logits.amax(dim=1).argmax(dim=1) == labels,
        "any": (classes == labels[:, None]).any(dim=1),
    }


def agreement(one: Tensor, other: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return which images [N], bool, two classifiers agree on, by the names of ``AGREEMENTS``.

    Args:
        one: Classes [N] that the first classifier predicts.
        other: Classes [N] that the second one predicts.
        labels: Labels [N].
    """
    same = one == other
    return {
        "both_correct": same & (one == labels),
        "same_error": same & (one != labels),
        "disagree": ~same,
    }
