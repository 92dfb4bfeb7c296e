"""Base classes of the path scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ...classifiers.classifier import Classifier
from ...diffusion.denoiser import Denoiser
from ...diffusion.path import Path
from ...errors import InputError
from ..hyperparameters import WithHyperparameters


@dataclass(frozen=True)
class PathScore(WithHyperparameters):
    """OOD score of the statistics of an image's path. Its fields are the hyper-parameters.

    To add one: subclass it in the file of its family and register it in :mod:`.names`. A class
    outside this package is named by its import path, ``my_package.module.MyScore``.
    """

    setting: ClassVar[str] = "path_scores"
    kind: ClassVar[str] = "path score"

    def for_schedule(
        self, timesteps: Tensor, inversion_steps: int, train_steps: int
    ) -> "PathScore":
        """Return the score for a schedule: with the steps that it looks at.

        Args:
            timesteps: [S] training timesteps of the schedule, ascending.
            inversion_steps: Number of inversion steps that an image takes at most.
            train_steps: Length T of the training schedule.

        Raises:
            InputError: It looks at steps that no image takes.
        """
        return self

    @property
    def path_steps(self) -> int:
        """Number of first inversion steps that it looks at."""
        return 0

    @property
    def pull_steps(self) -> tuple[int, ...]:
        """Inversion steps at which it needs the label's pull, one evaluation more each."""
        return ()

    @property
    def guided_denoising_steps(self) -> tuple[int, ...]:
        """Denoising steps, by schedule index, that have to be guided for the score."""
        return ()

    @property
    def looks_at_denoising(self) -> bool:
        """Whether it looks at denoising steps, so that images have to be reconstructed."""
        return False

    def features(self, path: Path) -> Tensor:
        """Compute what the score is a function of, [N, F]; NaN where a step was not taken."""
        raise NotImplementedError(f"{type(self).__name__} has no features of the path")

    def fit(self, features: Tensor) -> dict[str, Tensor]:
        """Compute the :attr:`tensors` from the features [N, F] of in-distribution images."""
        return {}

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        """Compute the score [N] of features [N, F], higher = more in-distribution.

        Args:
            features: See :meth:`features`, float64.
            fitted: The tensors of :meth:`fit`, by name, on the same device.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Subject:
    """Images, and what scores with evaluations of their own may look at.

    Attributes:
        images: [N, 3, H, W] in [0, 1].
        x: [N, C, h, w] what is diffused of them.
        labels: [N] classes that they are reconstructed under.
        denoiser: The diffusion model at any timestep.
        network: The diffusion model as a module.
        classifier: Classifier under protection.
        decode: Maps x [n, C, h, w] to images [n, 3, H, W] in [0, 1].
    """

    images: Tensor
    x: Tensor
    labels: Tensor
    denoiser: Denoiser
    network: nn.Module
    classifier: Classifier
    decode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MeasuredScore(PathScore):
    """Score of evaluations of the diffusion model that are its own, besides those of the path."""

    @property
    def nfe(self) -> int:
        """Number of its network evaluations of each image."""
        raise NotImplementedError

    def check_labels(self, null_label: int | None, is_conditional: bool) -> None:
        """Raise an `InputError` if the model cannot be evaluated as the score needs.

        Args:
            null_label: Label that means "no class" to the model, if it has one.
            is_conditional: Whether the model takes labels.
        """
        if is_conditional and null_label is None:
            raise InputError(
                f"path_scores: {self.name}: evaluates the model without a class, and the "
                "class-conditional model has no label for that; leave it out"
            )

    def measure(self, subject: Subject) -> Tensor:
        """Compute what the score is a function of, [N, F], for any number of images."""
        raise NotImplementedError
