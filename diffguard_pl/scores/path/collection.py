"""Any number of path scores in one module, computed from what the engine keeps of each image."""

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from ...diffusion.path import Path
from ...errors import InputError
from ..named_scores import NamedScores, find_imported, find_registered, settings_by_name
from .base import MeasuredScore, PathScore, Subject
from .names import PATH_SCORES


class PathScores(NamedScores[PathScore]):
    """Any number of path scores.

    Args:
        names: Names of :data:`.names.PATH_SCORES`, or import paths of other
            :class:`.base.PathScore` classes; or a mapping from these to hyper-parameters, where
            None or an absent one stands for the default.
        timesteps: [S] training timesteps of the schedule, ascending.
        inversion_steps: Number of inversion steps that an image takes at most.
        train_steps: Length T of the training schedule.

    Attributes:
        names: Names of the scores.
        hyperparameters: Hyper-parameters of each score, defaults included, by the given name.
        path_steps: Number of first inversion steps that they look at.
        pull_steps: Inversion steps at which they need the label's pull, ascending.
        look_at_denoising: Whether any looks at denoising steps.
        fit_looks_at_denoising: Whether any of those that are fitted does.

    Raises:
        InputError: A name or a hyper-parameter is unknown, or a score looks at steps that no image
            takes.
    """

    setting = "path_scores"

    def __init__(
        self,
        names: Sequence[str] | Mapping[str, Mapping[str, Any] | None],
        timesteps: Tensor,
        inversion_steps: int,
        train_steps: int,
    ):
        settings = settings_by_name("path_scores", names, PATH_SCORES)
        scores = [
            find(name).from_settings(of).for_schedule(timesteps, inversion_steps, train_steps)
            for name, of in settings.items()
        ]
        super().__init__(settings, scores)
        self.path_steps = max((score.path_steps for score in scores), default=0)
        pull_steps = {step for score in scores for step in score.pull_steps}
        self.pull_steps = sorted(pull_steps)
        self.look_at_denoising = any(score.looks_at_denoising for score in scores)
        self.fit_looks_at_denoising = any(
            score.looks_at_denoising for score in scores if score.tensors
        )
        if self.look_at_denoising and not self.path_steps:
            # The statistics of denoising are kept with those of inversion.
            self.path_steps = 1

    @property
    def needs_fit(self) -> bool:
        """Whether any score is fitted to in-distribution images."""
        return any(score.tensors for score in self._scores.values())

    @property
    def nfe(self) -> int:
        """Number of network evaluations of each image besides those of its path."""
        return sum(score.nfe for score in self._scores.values() if isinstance(score, MeasuredScore))

    @torch.no_grad()
    def measure(self, subject: Subject, names: Collection[str]) -> dict[str, Tensor]:
        """Compute the features [N, F] of the scores with evaluations of their own, by name.

        Args:
            subject: The images.
            names: Names of the scores to compute; those without evaluations are left out.
        """
        with torch.autocast(subject.x.device.type, enabled=False):
            return {
                name: score.measure(subject)
                for name, score in self._scores.items()
                if isinstance(score, MeasuredScore) and name in names
            }

    @torch.no_grad()
    def features(
        self, path: Path | None, measured: Mapping[str, Tensor], names: Iterable[str]
    ) -> dict[str, Tensor]:
        """Compute the features [N, F] of scores by name, in float64.

        Args:
            path: Statistics of the steps. None if no score looks at them.
            measured: See :meth:`measure`.
            names: Names of the scores.
        """
        exact = None if path is None else Path(_in_float64(path.values), path.size)
        features = {}
        for name in names:
            score = self._scores[name]
            if isinstance(score, MeasuredScore):
                features[name] = _in_float64(measured[name])
            else:
                assert exact is not None
                features[name] = score.features(exact)
        return features

    @torch.no_grad()
    def forward(self, path: Path | None, measured: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the scores [N] by name, in float32; see :meth:`features`.

        They are NaN where an image did not take a step that a score looks at.

        Raises:
            InputError: A score is not fitted yet.
        """
        if self.unfitted:
            raise InputError(
                f"path_scores: {', '.join(self.unfitted)} must be fitted to in-distribution "
                "images; set data.train, or call DiffGuard.fit_path_scores"
            )
        features = self.features(path, measured, self.names)
        given = [*measured.values()] if path is None else [path.values]
        device = given[0].device
        return {name: self._score(name, of).to(device) for name, of in features.items()}

    def check_labels(self, null_label: int | None, is_conditional: bool) -> None:
        """Raise an `InputError` if a score cannot evaluate the model as it needs."""
        for score in self._scores.values():
            if isinstance(score, MeasuredScore):
                score.check_labels(null_label, is_conditional)

    def check_denoising(self, guided: Tensor, timesteps: Tensor, train_steps: int) -> None:
        """Raise an `InputError` if a score looks at a denoising step that is not guided.

        Args:
            guided: Whether images take a denoising step and it is guided, bool [S].
            timesteps: [S] training timesteps of the schedule.
            train_steps: Length T of the training schedule.
        """
        times = (timesteps / (train_steps - 1)).tolist()
        for name, score in self._scores.items():
            for step in score.guided_denoising_steps:
                if not guided[step]:
                    possible = ", ".join(f"{times[i]:.3g}" for i in guided.nonzero().flatten())
                    raise InputError(
                        f"path_scores: {name}: needs a guided denoising step, and the one at time "
                        f"{times[step]:.3g} is not guided; set times to any of {possible}, or at "
                        "to inversion"
                    )

    def nfe_of(self, name: str, per_pull: int) -> int | None:
        """Return the network evaluations of an image for a score alone; None: all that there are.

        Args:
            name: Name of the score.
            per_pull: Evaluations more of a step at which the pull is measured.
        """
        score = self._scores[name]
        if isinstance(score, MeasuredScore):
            return score.nfe
        if score.looks_at_denoising:
            return None
        return score.path_steps + per_pull * len(score.pull_steps)

    @property
    def early_names(self) -> list[str]:
        """Names of the scores that are known after a few inversion steps."""
        return [name for name, score in self._scores.items() if score.path_steps]

    def path_steps_of(self, name: str) -> int:
        """Return the number of first inversion steps that a score looks at."""
        return self._scores[name].path_steps

    @torch.no_grad()
    def early_score(self, name: str, path: Path) -> Tensor:
        """Compute one of the :attr:`early_names` alone, [N]."""
        exact = Path(_in_float64(path.values), path.size)
        return self._score(name, self._scores[name].features(exact))

    def _score(self, name: str, features: Tensor) -> Tensor:
        score = self._scores[name]
        fitted = {key: value.to(features) for key, value in self._fitted(score).items()}
        return score.score(features, fitted).float()

    @torch.no_grad()
    def fit_features(self, features: Mapping[str, Tensor]) -> None:
        """Fit the scores to the features [N, F] of in-distribution images by name.

        Raises:
            InputError: The images do not suffice.
        """
        # Everything is computed before anything is set: a failure leaves the state as it was.
        fitted: dict[str, Tensor] = {}
        for name, score in self._scores.items():
            if score.tensors:
                found = score.fit(features[name].double())
                fitted |= {self._key(score, tensor): value for tensor, value in found.items()}
        for tensor, value in fitted.items():
            setattr(self, tensor, value.double().contiguous())

    def code_of_others(self) -> dict[str, str]:
        """Return the hash of the source file of each score from outside this package, by name."""
        package = __package__.partition(".")[0]
        return {
            name: sha256(FilePath(inspect.getfile(type(score))).read_bytes()).hexdigest()
            for name, score in self._scores.items()
            if type(score).__module__.partition(".")[0] != package
        }

    def _key(self, score: PathScore, tensor: str) -> str:
        return f"{score.name}_{tensor}"


def _in_float64(values: Tensor) -> Tensor:
    """Return values in float64, on the CPU if the device has none."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def find(name: str) -> type[PathScore]:
    """Return the class of a path score by its name, or by the import path of another one.

    Raises:
        InputError: The name is unknown, or the path does not lead to a subclass of `PathScore`.
    """
    if "." not in name:
        return find_registered(PathScore, name, PATH_SCORES, str(__package__))
    return find_imported(PathScore, name, PATH_SCORES, ["name"])
