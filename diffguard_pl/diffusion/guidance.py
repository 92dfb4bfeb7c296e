"""Base class of guidance: how the noise prediction of a denoising step is pulled towards a label.

    eps_hat(x_t, y) = eps(x_t) + (a term that makes the label y more likely)

Each kind of guidance has a file: :mod:`.classifier_guidance` takes the term from the gradient of a
classifier (paper, section 3.2.1), :mod:`.classifier_free_guidance` from a class-conditional
diffusion model (section 3.2.2).

A guidance turns one network call into the noise of all rows of a batch. The rows may belong to
different images, to inversion or denoising and to any timestep; those that are not guided, such as
the rows of inversion or of the unguided reconstruction (``compare_to: unguided``), share the call.

The term, at scale 1, is the label's pull. It is also a score of its own, see
:mod:`~diffguard_pl.scores.path.label_pull`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .ddim import Level, clip_eps

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""eps(x [n, C, H, W], t [n], labels [n]) -> [n, C, H, W]."""


class GuidanceInputs(NamedTuple):
    """Guidance inputs of one network call on n rows, of which the first g are guided.

    Behind the n rows come k unguided copies: the first k rows once more, to be predicted without
    guidance. They reuse the network output of those rows.

    Attributes:
        network_labels: [n] label under which the network is evaluated: "no class", or the label of
            a conditional row.
        labels: [g] class that each guided row is pulled towards.
        scale: [g, 1, 1, 1] guidance scale.
        crops: [g, cutouts, 3] x, y and side of the squares that the classifier sees. None: the
            whole image.
        mask: bool [g, 1, h, w], True where the guidance acts. None: everywhere.
        clip: bool [n + k, 1, 1, 1], True where the predicted x0 is clamped to [-1, 1]. None:
            nowhere.
        unguided_copies: Number of copies k.
    """

    network_labels: Tensor
    labels: Tensor
    scale: Tensor
    crops: Tensor | None = None
    mask: Tensor | None = None
    clip: Tensor | None = None
    unguided_copies: int = 0


class GuidedNoise(NamedTuple):
    """Noise of one network call, and what guidance made it of.

    Without mask and clamping, the guided rows are unguided + scale * pull.

    Attributes:
        eps: [n + k, C, H, W] noise of all rows and copies, guided in the first g rows.
        unguided: [g, C, H, W] noise of the guided rows without guidance.
        pull: [g, C, H, W] the label's pull on them: the term of guidance at scale 1.
    """

    eps: Tensor
    unguided: Tensor
    pull: Tensor


@dataclass(frozen=True)
class GuidingClassifier:
    """The classifier under protection, as classifier guidance uses it.

    Attributes:
        logits: Differentiable function from images [n, 3, H, W] in [0, 1] to logits [n, classes].
        input_size: Side of the images that the classifier takes, in pixels.
    """

    logits: Callable[[Tensor], Tensor]
    input_size: int


class Guidance(ABC):
    """Base class of guidance.

    Attributes:
        scale: Guidance scale of denoising.
        inversion_scale: Guidance scale of inversion. 0: under "no class"; 1: under the label.
        nfe_per_step: Network evaluations (NFE) of a guided step.
        interval: Fractions of the training schedule, 0 (clean) to 1 (noise), between which
            denoising is guided.
        cam_cut: Threshold of distinct semantic guidance. None: no mask.
        needs_null_label: Whether the diffusion model needs a label that means "no class".
        needs_pixels: Whether x has to be an image, not a latent.
    """

    scale: float
    inversion_scale = 0.0
    nfe_per_step = 1
    interval: tuple[float, float] = (0.0, 1.0)
    cam_cut: float | None = None
    needs_null_label = False
    needs_pixels = False

    def denoising_scales(self, timesteps: Tensor, train_steps: int) -> Tensor:
        """Return the guidance scale [S] at each timestep, 0 outside the interval.

        Args:
            timesteps: [S] timesteps of the sampling schedule.
            train_steps: Length T of the training schedule.
        """
        # The interval counts from timestep 0 (clean) to T - 1 (noise).
        low, high = self.interval
        last = train_steps - 1
        inside = (timesteps >= low * last) & (timesteps <= high * last)
        return torch.where(inside, self.scale, 0.0)

    def check_interval(self, timesteps: Tensor, train_steps: int) -> None:
        """Raise an `InputError` if the interval contains none of the timesteps [S]."""
        if self.scale and not self.denoising_scales(timesteps, train_steps).any():
            raise InputError(
                f"guidance.interval={list(self.interval)}: contains none of the {len(timesteps)} "
                "timesteps; widen it or raise steps"
            )

    def needs_single_call(self, scale: Tensor, masked: bool) -> Tensor:
        """Return where evaluating the network under the label alone gives the guided noise.

        Args:
            scale: [n] guidance scale of each row.
            masked: Whether guidance is limited to a mask.

        Returns:
            bool [n].
        """
        return torch.zeros_like(scale, dtype=torch.bool)

    def is_guided(self, scale: Tensor, masked: bool) -> Tensor:
        """Return which rows need a guided step, bool [n]; see :meth:`needs_single_call`."""
        return (scale != 0) & ~self.needs_single_call(scale, masked)

    def crops(self, steps: int, image_size: int) -> Tensor | None:
        """Return the squares that the classifier sees at each denoising step.

        Args:
            steps: Number of denoising steps.
            image_size: Side of x.

        Returns:
            x, y and side of each square, [steps, cutouts, 3]. None: the whole image.
        """
        return None

    def ablations(self) -> dict[str, "Guidance"]:
        """Return this guidance with parts left out, by what is left out; empty without parts."""
        return {}

    @abstractmethod
    def predict_eps(
        self,
        network: Network,
        x: Tensor,
        t: Tensor,
        level: Level,
        inputs: GuidanceInputs,
        classifier: GuidingClassifier,
    ) -> GuidedNoise:
        """Return the noise in x, guided in the first g rows, with one network call.

        Args:
            network: Diffusion model.
            x: [n + k, C, H, W] states, in the order of :class:`GuidanceInputs`.
            t: [n] timesteps.
            level: Signal and noise level of the n + k rows.
            inputs: What each row needs.
            classifier: Classifier under protection.
        """


def changed(guidance: Guidance, **attributes: Any) -> Guidance:
    """Return a copy of a guidance with other attributes."""
    other = copy(guidance)
    vars(other).update(attributes)
    return other


def checked_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """Return the interval, or raise an `InputError` unless it is two ascending fractions."""
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"guidance.interval={list(interval)}: must be two fractions of the schedule; "
            "set 0 <= low <= high <= 1"
        )
    return low, high


def clip_where(clip: Tensor | None, x: Tensor, eps: Tensor, level: Level) -> Tensor:
    """Return the noise, with x0hat clamped to [-1, 1] in the rows where ``clip`` is True."""
    if clip is None:
        return eps
    return torch.where(clip, clip_eps(x, eps, level), eps)
