"""Similarity of images to themselves on their way to noise, one value per dataset and step."""

from typing import NamedTuple


class InversionPoint(NamedTuple):
    """Similarity of the images of one dataset to their states after one inversion step.

    Attributes:
        dataset: Name of the dataset.
        step: Index of the step, from the cleanest on; adaptive early stop counts the same way.
        timestep: Timestep of the diffusion model.
        images: Number of images.
        mean: Mean over the images by name of the similarity.
        std: Standard deviation over the images by name of the similarity.
    """

    dataset: str
    step: int
    timestep: int
    images: int
    mean: dict[str, float]
    std: dict[str, float]
