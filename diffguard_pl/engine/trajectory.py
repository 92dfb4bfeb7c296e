"""Data of the engine: requests, the trajectories of their images, and a table of all steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..diffusion.ddim import Level
from ..diffusion.path import Path
from ..diffusion.sampling import GuidedSampler, SamplingSettings
from ..stages import PathGate


@dataclass(eq=False)
class Request:
    """Images that arrive together, and whose results are returned together.

    Attributes:
        x: [N, C, h, w] images or latents to invert and reconstruct.
        labels: [N] classes to reconstruct under.
        mask: bool [N, 1, h, w], True where denoising is guided. None: everywhere.
        payload: Whatever the caller wants back with the results.
        path_gate: Decides which images are reconstructed. None: all.
        guided: [N, C, h, w] reconstructions under the label, undefined where there is none. None
            if the settings ask for none.
        unguided: [N, C, h, w] reconstructions without guidance. None if the settings ask for none.
        path: Statistics of the steps. None unless a score needs them.
        stop_index: [N] schedule index at which inversion stopped, on the CPU; -1 where the gate
            has kept an image from being reconstructed.
        nfe: [N] network evaluations of each image.
        missing: Number of trajectories that are not finished.
    """

    x: Tensor
    labels: Tensor
    mask: Tensor | None = None
    payload: Any = None
    path_gate: PathGate | None = None
    guided: Tensor | None = field(init=False, default=None)
    unguided: Tensor | None = field(init=False, default=None)
    path: Path | None = field(init=False, default=None)
    stop_index: Tensor = field(init=False)
    nfe: list[int] = field(init=False)
    missing: int = field(init=False)

    def allocate_results(self, settings: SamplingSettings) -> None:
        """Make room for the results."""
        count = len(self.x)
        self.guided = torch.empty_like(self.x) if settings.reconstructs else None
        self.unguided = torch.empty_like(self.x) if settings.with_unguided else None
        if settings.path_steps and count:
            self.path = Path.empty(self.x, len(settings.schedule))
        self.stop_index = torch.full((count,), max(0, settings.inversion_steps - 1))
        self.nfe = [0] * count
        self.missing = 2 * count if settings.with_unguided else count
        if settings.inversion_steps == 0:
            self.missing = 0


class Trajectory:
    """One state x of an image on its way to noise and back.

    It is the image's inversion, and then its guided and its unguided denoising for as long as the
    two are the same. At the first guided step the unguided part forks off as a second trajectory.

    Attributes:
        request: Request of the image.
        image: Number of the image in the request.
        slot: Slot of the state.
        reference_slot: Slot of what adaptive early stop compares to; -1 without early stop.
        inverting: Whether it is in inversion; else in denoising.
        index: Schedule index of its next step.
        steps_taken: Number of steps taken in this direction.
        yields_guided: Whether it ends in the guided reconstruction.
        yields_unguided: Whether it ends in the unguided reconstruction.
        pending_checks: Number of checks (early stop, gate) that have yet to say if it continues.
        left: Whether the gate has ended it.
    """

    __slots__ = (
        "image",
        "index",
        "inverting",
        "left",
        "pending_checks",
        "reference_slot",
        "request",
        "slot",
        "steps_taken",
        "yields_guided",
        "yields_unguided",
    )

    def __init__(self, request: Request, image: int):
        self.request, self.image = request, image
        self.slot = self.reference_slot = -1

        # It begins with the first inversion step.
        self.inverting, self.index, self.steps_taken = True, 0, 0
        self.yields_guided, self.yields_unguided = True, False
        self.pending_checks, self.left = 0, False

    def fork_unguided(self, slot: int) -> Trajectory:
        """Split off the unguided denoising as a trajectory with its state in ``slot``."""
        # The fork is at the same step, and from now on each yields one reconstruction.
        fork = Trajectory(self.request, self.image)
        fork.slot = slot
        fork.inverting, fork.index, fork.steps_taken = False, self.index, self.steps_taken
        fork.yields_guided, fork.yields_unguided = False, True
        self.yields_unguided = False
        return fork


class StepTable:
    """Constants of every step on the device: S rows for inversion, then S for denoising.

    Args:
        sampler: Sampler of the steps.
        like: Tensor [N, C, h, w] with the dtype, device and size of the states.

    Attributes:
        levels: [2S, 4, 1, 1, 1] signal and noise before the step, signal and noise after it.
        timesteps: [2S].
        scales: [2S, 1, 1, 1] guidance scales.
        is_guided: [2S] whether the step is guided.
        needs_single_call: [2S] whether its guided noise is that of the network under the label.
        crops: [S, cutouts, 3] crops of the k-th denoising step. None: the whole image.
        clip: bool [2S, 1, 1, 1], True where x0hat is clamped to [-1, 1]. None: nowhere.
    """

    def __init__(self, sampler: GuidedSampler, like: Tensor):
        schedule, guidance = sampler.settings.schedule, sampler.guidance
        self.steps, device = len(schedule), like.device

        # Signal and noise level before and after each step.
        before = torch.cat([schedule.inversion_from, schedule.denoising_from])
        after = torch.cat([schedule.inversion_to, schedule.denoising_to])
        self.levels = torch.stack([*Level.of(before, like), *Level.of(after, like)], dim=1)
        self.timesteps = torch.cat([schedule.timesteps] * 2).to(device)

        # Guidance. A mask limits denoising, never inversion.
        inversion, denoising = sampler.inversion_scales(), sampler.denoising_scales()
        masked = guidance.cam_cut is not None
        self.scales = torch.cat([inversion, denoising]).to(like).view(-1, 1, 1, 1)
        self.is_guided = [
            *sampler.guided_inversion_steps().tolist(),
            *guidance.is_guided(denoising, masked).tolist(),
        ]
        self.needs_single_call = [
            *guidance.needs_single_call(inversion, masked=False).tolist(),
            *guidance.needs_single_call(denoising, masked).tolist(),
        ]

        # Every image sees the same crops at its k-th denoising step.
        crops = guidance.crops(self.steps, like.shape[-1])
        self.crops = None if crops is None else crops.to(device)

        # All steps clamp x0hat, except the first of inversion.
        self.clip: Tensor | None = None
        if sampler.clip_denoised:
            self.clip = (torch.arange(2 * self.steps) > 0).to(device).view(-1, 1, 1, 1)

    def row(self, trajectory: Trajectory) -> int:
        """Return the row of a trajectory's next step."""
        return trajectory.index if trajectory.inverting else self.steps + trajectory.index
