"""From what a network predicts, at whatever scale, to the noise in x: one place for all models.

Every diffusion model sees a clean image or latent x0 with noise eps of unit variance in it,

    x = signal x0 + noise eps

and only the ratio of the two levels matters: DDIM gives the same x0hat and eps for x and for c x.
Here states are always scaled to signal^2 + noise^2 = 1, so that alpha_bar = signal^2 describes the
level of a model whatever its own scale is:

    model                              its own x                       alpha_bar
    variance preserving (Ho 2020)      sqrt(a) x0 + sqrt(1 - a) eps    a
    EDM (Karras et al. 2022)           x0 + sigma eps                  1 / (1 + sigma^2)
    rectified flow (Liu et al. 2023)   (1 - s) x0 + s eps              1 / (1 + (s / (1 - s))^2)

A network predicts eps, x0, v = signal eps - noise x0 (Salimans & Ho 2022, appendix D), the flow
eps - x0 (Lipman et al. 2023), or EDM's F (Karras et al. 2022, table 1). Each is turned into eps
without a difference of nearly equal numbers wherever its definition permits.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..errors import choose
from .ddim import Level, eps_from_x0

PREDICTION_TYPES = ["epsilon", "sample", "v_prediction"]
"""What a variance-preserving network can predict, by diffusers' names."""


class Parametrisation(ABC):
    """What a network takes and predicts."""

    @abstractmethod
    def inputs(self, x: Tensor, t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """Return what the network takes: x at its own scale [n, C, h, w], and its time [n].

        Args:
            x: States [n, C, h, w] of unit scale.
            t: Timesteps [n] of the training schedule.
            level: Signal and noise level of x.
        """

    @abstractmethod
    def eps(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        """Return the noise in x [n, C, h, w].

        Args:
            output: Output of the network [n, C, h, w].
            x: States [n, C, h, w] of unit scale.
            level: Signal and noise level of x.
        """

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """Return the output of a network that predicts x0 and eps, the target of its training."""


@dataclass(frozen=True)
class VariancePreserving(Parametrisation):
    """A network of DDPM's family.

    Args:
        predicts: ``epsilon``, ``sample`` (x0) or ``v_prediction``.
        time_scale: Factor on the timesteps that the network takes.
    """

    predicts: str = "epsilon"
    time_scale: float = 1

    def __post_init__(self) -> None:
        choose("prediction_type", self.predicts, PREDICTION_TYPES)

    def inputs(self, x: Tensor, t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        return x, t * self.time_scale

    def eps(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        if self.predicts == "epsilon":
            return output
        if self.predicts == "sample":
            return eps_from_x0(x, output, level)
        return level.signal * output + level.noise * x

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        if self.predicts == "epsilon":
            return eps
        if self.predicts == "sample":
            return x0
        return level.signal * eps - level.noise * x0


@dataclass(frozen=True)
class RectifiedFlow(Parametrisation):
    """A network that predicts the flow eps - x0 at (1 - s) x0 + s eps.

    Args:
        time_scale: Time of the network at s = 1, pure noise.
        towards_data: Whether it predicts x0 - eps, and its time is 1 - s, as SiT's (Ma et al.
            2024).
    """

    time_scale: float = 1000
    towards_data: bool = False

    def inputs(self, x: Tensor, t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        total = level.signal + level.noise
        time = (level.signal if self.towards_data else level.noise) / total
        return x / total, time.flatten() * self.time_scale

    def eps(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        flow = -output if self.towards_data else output
        return (x + level.signal * flow) / (level.signal + level.noise)

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        return x0 - eps if self.towards_data else eps - x0


@dataclass(frozen=True)
class EDM(Parametrisation):
    """A network F inside EDM's scaling (Karras et al. 2022, table 1), at x0 + sigma eps.

        x0hat = c_skip x + c_out F(c_in x, time_scale ln(sigma))
        c_skip = d^2 / ((sigma - sigma_min)^2 + d^2)
        c_out = (sigma - sigma_min) d / sqrt(sigma^2 + d^2)
        c_in = 1 / sqrt(sigma^2 + d^2)

    With sigma_min = 0 this is EDM's. A consistency model has its smallest sigma there, at which it
    returns x itself (Song et al. 2023, appendix C).

    Args:
        sigma_data: Standard deviation d of images or latents.
        sigma_min: See above.
        time_scale: Factor on ln(sigma) that gives the time of the network.
        sign: Sign of F: -1 where it predicts v (diffusers' ``v_prediction``).
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.0
    time_scale: float = 0.25
    sign: int = 1

    def inputs(self, x: Tensor, t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        # At its own scale, x is divided by the signal level.
        sigma = level.noise / level.signal
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()
        return x / level.signal * c_in, sigma.flatten().log() * self.time_scale

    def eps(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        # eps = ((1 - c_skip) x - c_out F) / sigma, with a factor (sigma - sigma_min) taken out.
        sigma = level.noise / level.signal
        above = sigma - self.sigma_min
        kept = above / (above**2 + self.sigma_data**2) * (x / level.signal)
        return above / sigma * (kept - self._c_out_slope(sigma) * output)

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        # F = (x0 - c_skip (x0 + sigma eps)) / c_out
        sigma = level.noise / level.signal
        above = sigma - self.sigma_min
        c_skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        return (x0 - c_skip * (x0 + sigma * eps)) / (above * self._c_out_slope(sigma))

    def _c_out_slope(self, sigma: Tensor) -> Tensor:
        """Return c_out / (sigma - sigma_min)."""
        return self.sign * self.sigma_data * (sigma**2 + self.sigma_data**2).rsqrt()
