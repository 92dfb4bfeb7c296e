"""Settings of inversion and denoising, and the guided sampler that follows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import InputError, choose
from .early_stop import METRICS, EarlyStop
from .guidance import Guidance, GuidingClassifier, Network
from .schedule import Schedule


@dataclass(frozen=True)
class SamplingSettings:
    """DDIM steps that an image takes in inversion and denoising.

    Args:
        schedule: Schedule of S steps.
        compare_to: Reference of the comparison: ``input``, ``unguided`` for a second
            reconstruction without guidance (the original's ``uncond_aux``), or ``none`` to invert
            only.
        early_stop_steps: Number of last inversion steps to skip.
        skip_first_steps: Number of first denoising steps to skip. Ignored where
            ``forback_skip_diff`` is set.
        skip_last_steps: Number of last denoising steps to skip.
        early_stop: Adaptive early stop: similarity thresholds by name.
        forback_skip_diff: Offset d of the first denoising step: its index is that of the last
            inversion step + d - 1. 0: denoising starts at the top of the schedule.
        path_steps: Number of first inversion steps that path scores look at, and that are taken
            with ``compare_to: none``. 0: the statistics of :mod:`.path` are not kept.
        pull_steps: Inversion steps at which the label's pull is measured.

    Raises:
        InputError: A setting is out of range.
    """

    schedule: Schedule
    compare_to: str = "input"
    early_stop_steps: int = 0
    skip_first_steps: int = 0
    skip_last_steps: int = 0
    early_stop: Mapping[str, float] = field(default_factory=dict)
    forback_skip_diff: int = 0
    path_steps: int = 0
    pull_steps: Sequence[int] = ()

    def __post_init__(self) -> None:
        choose("compare_to", self.compare_to, ["input", "unguided", "none"])
        for name in self.early_stop:
            choose("early_stop metric", name, METRICS)

        # Each part of the way keeps at least one step.
        steps = len(self.schedule)
        for name in ("early_stop_steps", "skip_first_steps", "skip_last_steps"):
            value = getattr(self, name)
            if not 0 <= value < steps:
                raise InputError(f"{name}={value}: must be 0 to {steps - 1} for {steps} steps")
        if self.forback_skip_diff < 0:
            raise InputError(f"forback_skip_diff={self.forback_skip_diff}: must be at least 0")

        if not self.reconstructs:
            return

        # With adaptive early stop, an image may stop after its first step.
        first_stop = torch.tensor([0 if self.early_stop else self.inversion_steps - 1])
        lowest_start = int(self.first_denoising_index(first_stop))
        if lowest_start < self.skip_last_steps:
            raise InputError(
                f"skip_last_steps={self.skip_last_steps}: must be at most {lowest_start}, where "
                "denoising may start; lower it or skip_first_steps, or raise forback_skip_diff"
            )

    @property
    def inversion_steps(self) -> int:
        """Number of inversion steps that an image takes at most."""
        if not self.reconstructs:
            return self.path_steps
        return len(self.schedule) - self.early_stop_steps

    @property
    def reconstructs(self) -> bool:
        """Whether images are reconstructed after inversion."""
        return self.compare_to != "none"

    @property
    def with_unguided(self) -> bool:
        """Whether each image is reconstructed without guidance, too."""
        return self.compare_to == "unguided"

    def first_denoising_index(self, stop_index: Tensor) -> Tensor:
        """Return the schedule index [N] at which denoising starts.

        Denoising takes the indices S-1, ..., 0 less the first ``skip``. With ``forback_skip_diff``
        d > 0, skip = max(0, S - stop_index - d), so that it starts slightly above the noise level
        at which inversion stopped. Otherwise skip = ``skip_first_steps``.

        Args:
            stop_index: [N] schedule index at which inversion stopped.
        """
        # S - 1 - skip
        last = len(self.schedule) - 1
        if self.forback_skip_diff > 0:
            return (stop_index + self.forback_skip_diff - 1).clamp(max=last)
        return torch.full_like(stop_index, last - self.skip_first_steps)


@dataclass(frozen=True)
class GuidedSampler:
    """Diffusion model, guidance and settings: all that decides the next state of an image.

    Attributes:
        network: Diffusion model.
        guidance: Guidance of denoising, and of inversion if its ``inversion_scale`` is not 0.
        classifier: Classifier under protection.
        settings: DDIM steps to take.
        train_steps: Length T of the training schedule.
        null_label: Label that means "no class" to the network. None if it takes no labels.
        clip_denoised: Whether x0hat is clamped to [-1, 1], except at the first inversion step.
        early_stop: Criterion of adaptive early stop. None: all images take all inversion steps.
    """

    network: Network
    guidance: Guidance
    classifier: GuidingClassifier
    settings: SamplingSettings
    train_steps: int
    null_label: int | None
    clip_denoised: bool = False
    early_stop: EarlyStop | None = None

    def inversion_scales(self) -> Tensor:
        """Return the guidance scale [S] at each inversion step."""
        return torch.full((len(self.settings.schedule),), self.guidance.inversion_scale)

    def guided_inversion_steps(self) -> Tensor:
        """Return which inversion steps are guided, bool [S], those that measure the pull included.

        At scale 0, a guided step gives the noise without guidance, and the pull beside it.
        """
        guided = self.guidance.is_guided(self.inversion_scales(), masked=False)
        guided[list(self.settings.pull_steps)] = True
        return guided

    def denoising_scales(self) -> Tensor:
        """Return the guidance scale [S] at each denoising step."""
        return self.guidance.denoising_scales(self.settings.schedule.timesteps, self.train_steps)

    def guided_denoising_steps(self) -> Tensor:
        """Return which denoising steps are guided and taken by images that stop last, bool [S]."""
        settings = self.settings
        masked = self.guidance.cam_cut is not None
        guided = self.guidance.is_guided(self.denoising_scales(), masked)
        last_stop = torch.tensor([settings.inversion_steps - 1])
        guided[int(settings.first_denoising_index(last_stop)) + 1 :] = False
        guided[: settings.skip_last_steps] = False
        return guided

    def null_labels(self, labels: Tensor) -> Tensor:
        """Return "no class" for each of the labels [n]; the labels if the network takes none."""
        if self.null_label is None:
            return labels
        return torch.full_like(labels, self.null_label)
