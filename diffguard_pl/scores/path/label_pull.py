"""The label's pull: how much the predicted label changes the noise that the model predicts.

An image that already is what its label says leaves guidance little to do: the noise under the label
and without one are alike. The difference of both, p = eps(x_t, y) - eps(x_t), is the term of
guidance at scale 1. With classifier guidance it is the clean gradient, times -sqrt(1 - alpha_bar).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...diffusion.path import Path
from ...errors import InputError
from ..hyperparameters import choice, derived, fractions
from .base import PathScore
from .density import MIXTURE, fit_mixture, mixture_log_density


@dataclass(frozen=True)
class LabelPull(PathScore):
    """Negative logarithm of the label's pull, mean over steps.

    At an inversion step it costs one network evaluation with classifier-free guidance, and a
    gradient of the classifier with classifier guidance; at a guided denoising step nothing.

    Args:
        times: Fractions of the training schedule, 0 (clean) to 1 (noise); the steps with the
            nearest timesteps are taken. Defaults to [0.1].
        at: ``inversion`` or ``denoising``.
        statistic: ``pull``: mean of p^2. ``relative``: that over the mean of eps^2. ``cosine``:
            1 + the cosine between p and eps. ``both``: the first times the third.
        sides: ``one``: a high pull is out-of-distribution. ``two``: so is one that is lower than
            that of in-distribution images; the score is the log-density of the logarithms, as
            fitted.
    """

    name = "label_pull"
    times: tuple[float, ...] = fractions(0.1)
    at: str = choice("inversion", ["inversion", "denoising"])
    statistic: str = choice("pull", ["pull", "relative", "cosine", "both"])
    sides: str = choice("one", ["one", "two"])
    steps: tuple[int, ...] = derived(())

    def for_schedule(self, timesteps: Tensor, inversion_steps: int, train_steps: int) -> PathScore:
        # Each time's nearest step; several times may share one.
        wanted = torch.tensor(self.times, dtype=torch.double) * (train_steps - 1)
        distance = (timesteps - wanted[:, None]).abs()
        steps = sorted(set(distance.argmin(dim=1).tolist()))
        if steps[-1] >= inversion_steps and not self.looks_at_denoising:
            last = int(timesteps[inversion_steps - 1]) / (train_steps - 1)
            raise InputError(
                f"path_scores: {self.name}: times={list(self.times)} must be at most {last:.3g}, "
                "where inversion ends"
            )
        return replace(self, steps=tuple(steps))

    @property
    def path_steps(self) -> int:
        return 0 if self.looks_at_denoising else max(self.steps) + 1

    @property
    def pull_steps(self) -> tuple[int, ...]:
        return () if self.looks_at_denoising else self.steps

    @property
    def guided_denoising_steps(self) -> tuple[int, ...]:
        return self.steps if self.looks_at_denoising else ()

    @property
    def looks_at_denoising(self) -> bool:
        return self.at == "denoising"

    @property
    def tensors(self) -> tuple[str, ...]:
        return MIXTURE if self.sides == "two" else ()

    def features(self, path: Path) -> Tensor:
        of = path.denoising if self.looks_at_denoising else path.inversion
        steps = list(self.steps)
        pull = of("pull2")[:, steps]
        if self.statistic == "relative":
            pull = pull / of("unguided2")[:, steps]
        elif self.statistic in ("cosine", "both"):
            norms = (pull * of("unguided2")[:, steps]).sqrt()
            angle = 1 + of("unguided_pull")[:, steps] / norms
            pull = angle if self.statistic == "cosine" else pull * angle
        return pull.log()

    def fit(self, features: Tensor) -> dict[str, Tensor]:
        return fit_mixture(features, None, self.name) if self.tensors else {}

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        if self.tensors:
            return mixture_log_density(features, fitted)
        return -features.mean(dim=1)
