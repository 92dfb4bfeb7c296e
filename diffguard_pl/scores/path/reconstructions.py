"""Peers of DiffGuard that add noise, denoise, and compare: DDPM-OOD, DiffNB, LMD and others.

Their noise is drawn once and is the same for every image.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, softmax

from ...diffusion.ddim import Level, predict_x0
from ...diffusion.denoiser import Denoiser
from ...errors import InputError
from ..hyperparameters import choice, count, fraction, fractions, parameter
from .base import MeasuredScore, Subject
from .density import Z_SCORE, fit_z_score, z_score


def timesteps_from(denoiser: Denoiser, time: float, steps: int) -> list[int]:
    """Return descending timesteps from a fraction of the schedule on, for S steps over all of it.

    They are evenly spaced; at least one.
    """
    taken = max(1, round(time * steps))
    return [denoiser.timestep(time * k / taken) for k in range(taken, 0, -1)]


def steps_from(times: Sequence[float], steps: int) -> int:
    """Return the number of network evaluations from all of these times."""
    return sum(max(1, round(time * steps)) for time in times)


@dataclass(frozen=True)
class DDPMOOD(MeasuredScore):
    """DDPM-OOD: how far images are from their reconstructions (Graham et al. 2023, 2211.07740).

    An image is noised to several levels and denoised without a label. The score is the negative
    mean of the mean squared errors, each as a z-score of in-distribution images. The paper adds
    LPIPS, has many more levels, and denoises in 100 steps of PLMS.

    Args:
        times: Levels, as fractions of the training schedule. Defaults to 0.2, 0.4 and 0.6.
        steps: Number of DDIM steps over the whole schedule. Defaults to 20.
    """

    name = "ddpm_ood"
    times: tuple[float, ...] = fractions(0.2, 0.4, 0.6)
    steps: int = count(20)

    @property
    def nfe(self) -> int:
        return steps_from(self.times, self.steps)

    @property
    def tensors(self) -> tuple[str, ...]:
        return Z_SCORE

    def measure(self, subject: Subject) -> Tensor:
        errors = []
        for draw, time in enumerate(self.times):
            timesteps = timesteps_from(subject.denoiser, time, self.steps)
            noisy = subject.denoiser.noised(subject.x, timesteps[0], draw)
            images = subject.decode(subject.denoiser.denoise(noisy, timesteps))
            errors.append((images - subject.images).square().flatten(1).mean(dim=1))
        return torch.stack(errors, dim=1)

    def fit(self, features: Tensor) -> dict[str, Tensor]:
        return fit_z_score(features, self.name)

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return -z_score(features, fitted).mean(dim=1)


@dataclass(frozen=True)
class DiffNB(MeasuredScore):
    """DiffNB: change of the classifier's answer by denoising (Liu et al. 2022, 2211.11255).

    An image is noised to several levels and denoised under the predicted label with classifier-free
    guidance. The score is the negative mean over levels and draws of the L1 distance of the logits,
    scaled to unit length, or of the probabilities of the image and its reconstruction. The
    published code has a score for each level.

    Args:
        times: Levels, as fractions of the training schedule. Defaults to the paper's.
        repeats: Number of draws of noise. Defaults to the paper's 4.
        steps: Number of DDIM steps over the whole schedule. Defaults to 50.
        scale: Factor of the guidance: the noise is eps + scale (eps_label - eps). Defaults to 3,
            as in the published code, which calls it 1 + beta.
        compare: ``logits`` or ``probabilities``.
    """

    name = "diffnb"
    times: tuple[float, ...] = fractions(0.12, 0.24, 0.36)
    repeats: int = count(4)
    steps: int = count(50)
    scale: float = parameter(3.0, lambda value: True, "a number")
    compare: str = choice("logits", ["logits", "probabilities"])

    @property
    def nfe(self) -> int:
        per_step = 1 if self.scale == 1 else 2
        return self.repeats * per_step * steps_from(self.times, self.steps)

    def check_labels(self, null_label: int | None, is_conditional: bool) -> None:
        if null_label is None:
            raise InputError(
                "path_scores: diffnb: needs a class-conditional model with a label for 'no class'; "
                "leave it out"
            )

    def measure(self, subject: Subject) -> Tensor:
        before = self._seen(subject, subject.images)
        distances = []
        for time in self.times:
            timesteps = timesteps_from(subject.denoiser, time, self.steps)
            for draw in range(self.repeats):
                noisy = subject.denoiser.noised(subject.x, timesteps[0], draw)
                x = subject.denoiser.denoise(noisy, timesteps, subject.labels, self.scale)
                after = self._seen(subject, subject.decode(x))
                distances.append((after - before).abs().sum(dim=1))
        return torch.stack(distances, dim=1)

    def _seen(self, subject: Subject, images: Tensor) -> Tensor:
        logits = subject.classifier.view(images).logits
        return normalize(logits, dim=1) if self.compare == "logits" else softmax(logits, dim=1)

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return -features.mean(dim=1)


@dataclass(frozen=True)
class ProjectionRegret(MeasuredScore):
    """Projection Regret (Choi et al., NeurIPS 2023, 2312.02615).

    A projection adds noise to an image and removes it in one evaluation, as a consistency model
    does. The score is the negative mean over draws of the distance of the image to its projection,
    less that of the projection to its own. The paper's distance is LPIPS; here it is the mean
    squared error of the pixels. A model without a label for "no class" is evaluated under the
    predicted one.

    Args:
        time: Level of the projection, as a fraction of the training schedule. Defaults to 0.4.
        second_time: Level of the projection of the projection. Defaults to 0.4.
        repeats: Number of draws of noise. Defaults to 10.
    """

    name = "projection_regret"
    time: float = fraction(0.4)
    second_time: float = fraction(0.4)
    repeats: int = count(10)

    @property
    def nfe(self) -> int:
        return 2 * self.repeats

    def check_labels(self, null_label: int | None, is_conditional: bool) -> None:
        return

    def measure(self, subject: Subject) -> Tensor:
        regrets = []
        for draw in range(self.repeats):
            once = self._projected(subject, subject.x, self.time, 2 * draw)
            twice = self._projected(subject, once, self.second_time, 2 * draw + 1)
            images = [subject.images, subject.decode(once), subject.decode(twice)]
            first, second = (
                (after - before).square().flatten(1).mean(dim=1)
                for before, after in itertools.pairwise(images)
            )
            regrets.append(first - second)
        return torch.stack(regrets, dim=1)

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return -features.mean(dim=1)

    def _projected(self, subject: Subject, x: Tensor, time: float, draw: int) -> Tensor:
        denoiser = subject.denoiser
        labels = subject.labels if denoiser.null_label is None else None
        t = denoiser.timestep(time)
        return denoiser.x0(denoiser.noised(x, t, draw), t, labels)


@dataclass(frozen=True)
class LMD(MeasuredScore):
    """LMD: distance of images to their inpainted selves (Liu et al., ICML 2023, 2302.10326).

    The squares of a checkerboard, and then the other ones, are inpainted without a label: at every
    step of DDPM the known part is the noised image. The score is the negative median over draws of
    the mean squared error. The paper has LPIPS, 10 draws and 1,000 steps.

    Args:
        squares: Number of squares along a side. Defaults to the paper's 8.
        repeats: Number of draws, for each of the two masks in turn. Defaults to 4.
        steps: Number of steps over the schedule. Defaults to 25.
    """

    name = "lmd"
    squares: int = count(8)
    repeats: int = count(4)
    steps: int = count(25)

    @property
    def nfe(self) -> int:
        return self.repeats * self.steps

    def measure(self, subject: Subject) -> Tensor:
        errors = []
        for repeat in range(self.repeats):
            known = self._board(subject.x) == repeat % 2
            images = subject.decode(self._inpaint(subject.denoiser, subject.x, known, repeat))
            errors.append((images - subject.images).square().flatten(1).mean(dim=1))
        return torch.stack(errors, dim=1)

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return -features.quantile(0.5, dim=1)

    def _board(self, x: Tensor) -> Tensor:
        """Return the checkerboard [h, w] of 0 and 1."""
        height, width = x.shape[-2:]
        row = torch.arange(height, device=x.device) * self.squares // height
        column = torch.arange(width, device=x.device) * self.squares // width
        return (row[:, None] + column) % 2

    def _inpaint(self, denoiser: Denoiser, x: Tensor, known: Tensor, repeat: int) -> Tensor:
        timesteps = timesteps_from(denoiser, 1.0, self.steps)
        draws = itertools.count(3 * self.steps * repeat)
        state = denoiser.noise(x, next(draws)).expand_as(x)
        for t, to in zip(timesteps, [*timesteps[1:], None], strict=True):
            level = denoiser.level(t, x)
            given = level.signal * x + level.noise * denoiser.noise(x, next(draws))
            state = torch.where(known, given, state)
            eps = denoiser.eps(state, t)
            x0 = predict_x0(state, eps, level)
            x0 = x0.clamp(-1, 1) if denoiser.clip_denoised else x0
            if to is None:
                return torch.where(known, x, x0)
            mean, deviation = _posterior(state, x0, level, denoiser.level(to, x))
            state = mean + deviation * denoiser.noise(x, next(draws))
        return state


def _posterior(x: Tensor, x0: Tensor, level: Level, to: Level) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of q(x_to | x_t, x0) (Ho et al. 2020, equation 7)."""
    # With alpha = alpha-bar_t / alpha-bar_to, the signal that this step keeps.
    alpha = (level.signal / to.signal).square()
    of_x0 = to.signal * (1 - alpha) / level.noise.square()
    of_x = alpha.sqrt() * to.noise.square() / level.noise.square()
    variance = (1 - alpha) * to.noise.square() / level.noise.square()
    return of_x0 * x0 + of_x * x, variance.sqrt()
