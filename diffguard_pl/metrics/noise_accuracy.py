"""Accuracy of a classifier on noisy images, one value per step of the schedule."""

from typing import NamedTuple


class NoiseAccuracy(NamedTuple):
    """Accuracy of the classifier at one step of the schedule.

    Attributes:
        step: Index of the step, from the cleanest on.
        timestep: Timestep of the diffusion model.
        accuracy: Accuracy in [0, 1] by variant; NaN without labels.
    """

    step: int
    timestep: int
    accuracy: dict[str, float]
