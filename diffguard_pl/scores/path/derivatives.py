"""Scores of derivatives of the predicted noise: SCOPED, EigenScore and the likelihood.

With x_t = a x0 + b e, the score function is s(x_t) = -eps(x_t) / b, and in the coordinates y = x_t
/ a with noise level sigma = b / a the predicted image is D(y) = y - sigma eps.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...diffusion.denoiser import Denoiser
from ..hyperparameters import count, fractions, positive
from .base import MeasuredScore, Subject
from .density import KERNELS, Z_SCORE, fit_kernels, fit_z_score, kernel_log_densities, z_score
from .reconstructions import timesteps_from


def eps_and_trace(denoiser: Denoiser, x: Tensor, t: int, draw: int) -> tuple[Tensor, Tensor]:
    """Return eps [N, C, h, w] and Hutchinson's estimate v^T (d eps / dx) v of a trace [N].

    The probe v is of +1 and -1, and the same for every image. The derivative is exact.

    Args:
        denoiser: The diffusion model.
        x: [N, C, h, w] states at timestep t.
        t: Timestep.
        draw: Number of the draw of the probe.
    """
    v = denoiser.noise(x, draw).sign()
    found, traces = [], []
    parts = list(x.split(denoiser.batch))
    while parts:
        part = parts.pop(0)
        try:
            eps, trace = _eps_and_trace(denoiser, part, t, v)
        except torch.OutOfMemoryError:
            # A derivative keeps what the network has computed on the way.
            if len(part) == 1:
                raise
            parts = [*part.chunk(2), *parts]
            continue
        found.append(eps)
        traces.append(trace)
    return torch.cat(found), torch.cat(traces)


def _eps_and_trace(denoiser: Denoiser, x: Tensor, t: int, v: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        x_in = x.clone().requires_grad_()
        eps = denoiser.eps(x_in, t)
        (of_v,) = torch.autograd.grad((eps * v.clone()).sum(), x_in)
    return eps.detach(), (of_v * v).flatten(1).sum(dim=1)


@dataclass(frozen=True)
class SCOPED(MeasuredScore):
    """SCOPED: |s|^2 over the trace of its Jacobian, log kernel densities summed (ICLR 2026).

    Args:
        times: Levels, as fractions of the training schedule. Defaults to 0.001 and 0.3.
    """

    name = "scoped"
    times: tuple[float, ...] = fractions(0.001, 0.3)

    @property
    def nfe(self) -> int:
        # The derivative costs about as much as an evaluation more.
        return 2 * len(self.times)

    @property
    def tensors(self) -> tuple[str, ...]:
        return KERNELS

    def measure(self, subject: Subject) -> Tensor:
        denoiser, ratios = subject.denoiser, []
        for draw, time in enumerate(self.times):
            t = denoiser.timestep(time)
            x = denoiser.noised(subject.x, t, draw)
            eps, trace = eps_and_trace(denoiser, x, t, len(self.times) + draw)
            b = denoiser.level(t, x).noise.flatten()
            ratios.append(eps.square().flatten(1).sum(dim=1) / b**2 / (-trace / b))
        return torch.stack(ratios, dim=1)

    def fit(self, features: Tensor) -> dict[str, Tensor]:
        return fit_kernels(features, self.name)

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return kernel_log_densities(features, fitted).sum(dim=1)


@dataclass(frozen=True)
class EigenScore(MeasuredScore):
    """EigenScore: largest eigenvalue of the posterior covariance sigma^2 dD/dy (ICLR 2026).

    By power iteration with central differences, for several levels and draws of noise; the score
    is the negative sum over levels of their mean, as z-scores of in-distribution images.

    Args:
        times: Levels, as fractions of the training schedule. Defaults to 0.1, 0.2 and 0.3; the
            paper has five from 0.1 to 0.3.
        draws: Number of draws of noise. Defaults to 1; the paper has 5.
        iterations: Number of power iterations. Defaults to 5.
        step: Length of the difference, in units of the noise level per value. Defaults to 0.01.
    """

    name = "eigenscore"
    times: tuple[float, ...] = fractions(0.1, 0.2, 0.3)
    draws: int = count(1)
    iterations: int = count(5)
    step: float = positive(0.01)

    @property
    def nfe(self) -> int:
        return 2 * self.iterations * self.draws * len(self.times)

    @property
    def tensors(self) -> tuple[str, ...]:
        return Z_SCORE

    def measure(self, subject: Subject) -> Tensor:
        found = []
        for time in self.times:
            t = subject.denoiser.timestep(time)
            of_draws = [self._eigenvalue(subject, t, draw) for draw in range(self.draws)]
            found.append(torch.stack(of_draws).mean(dim=0))
        return torch.stack(found, dim=1)

    def _eigenvalue(self, subject: Subject, t: int, draw: int) -> Tensor:
        denoiser = subject.denoiser
        x = denoiser.noised(subject.x, t, draw)
        a, b = denoiser.level(t, x)
        v = _normalised(denoiser.noise(x, self.draws + draw).expand_as(x))
        length = self.step * b * x[0].numel() ** 0.5
        eigenvalue = torch.zeros(len(x), device=x.device)
        for _ in range(self.iterations):
            # dD/dy v = v - sigma d eps/dy v, where y moves by d and x_t by a d.
            change = denoiser.eps(x + length * v, t) - denoiser.eps(x - length * v, t)
            product = v - b * change / (2 * length)
            eigenvalue = (v * product).flatten(1).sum(dim=1)
            v = _normalised(product)
        return eigenvalue * (b / a).square().flatten()

    def fit(self, features: Tensor) -> dict[str, Tensor]:
        return fit_z_score(features, self.name)

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return -z_score(features, fitted).sum(dim=1)


@dataclass(frozen=True)
class NLL(MeasuredScore):
    """Log-likelihood by the probability-flow ODE (Song et al., ICLR 2021, equation 39).

    In the coordinates y, the ODE is dy / dsigma = eps, and d log p / dsigma = -div eps. It is
    solved by Euler steps from the image to noise, as DDIM inversion is, with Hutchinson's estimate
    of the divergence. The score is the log-density per value, in nats.

    Args:
        steps: Number of steps over the schedule. Defaults to 20.
    """

    name = "nll"
    steps: int = count(20)

    @property
    def nfe(self) -> int:
        return 2 * self.steps

    def measure(self, subject: Subject) -> Tensor:
        denoiser = subject.denoiser
        timesteps = [0, *reversed(timesteps_from(denoiser, 1.0, self.steps))]
        signal, noise = denoiser.level(0, subject.x)
        y, sigma = subject.x / signal, noise / signal
        total = torch.zeros(len(y), device=y.device, dtype=y.dtype)
        for draw, (t, to) in enumerate(itertools.pairwise(timesteps)):
            signal, noise = denoiser.level(t, y)
            eps, trace = eps_and_trace(denoiser, y * signal, t, draw)
            signal_to, noise_to = denoiser.level(to, y)
            growth = noise_to / signal_to - noise / signal
            # eps is a function of x_t = a y.
            total = total + (growth * signal).flatten() * trace
            y = y + growth * eps
        sigma = (noise_to / signal_to).flatten()
        values = y[0].numel()
        squared = (y.flatten(1) / sigma[:, None]).square().sum(dim=1)
        constant = values * (sigma.log() + torch.log(torch.tensor(2 * torch.pi)) / 2)
        return ((total - squared / 2 - constant) / values)[:, None]

    def score(self, features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        return features[:, 0]


def _normalised(x: Tensor) -> Tensor:
    return x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
