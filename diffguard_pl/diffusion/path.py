"""What the noise prediction tells along the way of an image to noise and back.

Every step predicts a noise eps of D values. A few of its statistics are kept for each image and
step, from which path scores are computed without another evaluation of the network:

    eps, eps2, eps3           means of eps, eps^2, eps^3
    change, change2, change3  the same of the change of eps since the step before, if there was one
                              in this direction
    unguided2                 mean of e^2, where e is the noise without guidance
    pull2                     mean of p^2, where p is the label's pull: the noise under the label
                              is e + p
    unguided_pull             mean of e p

The last three are known where guidance evaluates both: at guided denoising steps, and at those
inversion steps where a score asks for it. Unguided denoising (``compare_to: unguided``) is not
kept once it has forked off.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .guidance import GuidedNoise

STATISTICS = (
    "eps",
    "eps2",
    "eps3",
    "change",
    "change2",
    "change3",
    "unguided2",
    "pull2",
    "unguided_pull",
)
"""Names of the statistics of a step, in order."""


@dataclass(frozen=True)
class Path:
    """Statistics of the steps of N images on a schedule of S steps.

    Attributes:
        values: [N, 2S, 9] :data:`STATISTICS` of each inversion step and, behind them, of each
            denoising step, by schedule index. NaN where an image took no such step.
        size: Number D of values of a state.
    """

    values: Tensor
    size: int

    @classmethod
    def empty(cls, x: Tensor, steps: int) -> "Path":
        """Return the path of images that have taken no step.

        Args:
            x: [N, C, h, w] states.
            steps: Number S of steps of the schedule.
        """
        values = x.new_full((len(x), 2 * steps, len(STATISTICS)), torch.nan)
        return cls(values, x[:1].numel())

    def inversion(self, name: str) -> Tensor:
        """Return a statistic at each inversion step, [N, S]."""
        return self._at(name, 0)

    def denoising(self, name: str) -> Tensor:
        """Return a statistic at each denoising step, [N, S]."""
        return self._at(name, self.values.shape[1] // 2)

    def _at(self, name: str, start: int) -> Tensor:
        steps = self.values.shape[1] // 2
        return self.values[:, start : start + steps, STATISTICS.index(name)]


def step_statistics(eps: Tensor, previous: Tensor, predicted: GuidedNoise) -> Tensor:
    """Return the :data:`STATISTICS` of a step [n, 9].

    Args:
        eps: [n, C, h, w] noise that the step uses.
        previous: [n, C, h, w] noise of the step before; NaN without one.
        predicted: What guidance made of the first g rows.
    """
    change = eps - previous
    of_all = [_mean(part**power) for part in (eps, change) for power in (1, 2, 3)]
    values = eps.new_full((len(eps), len(STATISTICS)), float("nan"))
    values[:, : len(of_all)] = torch.stack(of_all, dim=1)

    unguided, pull = predicted.unguided, predicted.pull
    of_guided = [_mean(unguided**2), _mean(pull**2), _mean(unguided * pull)]
    values[: len(pull), len(of_all) :] = torch.stack(of_guided, dim=1)
    return values


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(dim=1)
