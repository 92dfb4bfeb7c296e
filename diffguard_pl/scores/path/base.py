"""Base class of the path scores."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...diffusion.path import Path
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
    def looks_at_denoising(self) -> bool:
        """Whether it looks at denoising steps, so that images have to be reconstructed."""
        return False

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that :meth:`fit` returns; empty if it is not fitted."""
        return ()

    def features(self, path: Path) -> Tensor:
        """Compute what the score is a function of, [N, F]; NaN where a step was not taken."""
        raise NotImplementedError

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
