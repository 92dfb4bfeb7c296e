"""TODO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..diffusion.ddim import Level
from ..diffusion.early_stop import EarlyStop
from ..diffusion.guidance import Guidance, Protected
from ..diffusion.schedule import Schedule


@dataclass(frozen=True)
class Method:
    """What is done with each image.

    Attributes:
        schedule: of S steps.
        guidance: what steers denoising.
        classifier: that guidance asks.
        train_steps: T of the training schedule.
        null_label: the label that means "no class" to the network; None where it has none.
        inversion_steps: to take at most.
        skip_first_steps: leave out the first so many denoising steps; not used where forback_skip_diff is set.
        skip_last_steps: leave out the last so many denoising steps.
        forback_skip_diff: start denoising so many steps above where inversion stopped.
        clip: clamp predicted pictures to [-1, 1], but at the first inversion step.
        unguided: reconstruct without guidance, too.
        stop: adaptive early stop.
    """

    schedule: Schedule
    guidance: Guidance
    classifier: Protected
    train_steps: int
    null_label: int | None
    inversion_steps: int
    skip_first_steps: int = 0
    skip_last_steps: int = 0
    forback_skip_diff: int = 0
    clip: bool = False
    unguided: bool = False
    stop: EarlyStop | None = None


@dataclass(eq=False)
class Job:
    """Images that come together, and whose results go back together.

    Attributes:
        x: [N, C, h, w] what is diffused of them.
        labels: [N] to reconstruct under.
        mask: bool [N, 1, h, w] where to steer; None: everywhere.
        ticket: whatever the caller wants back with the results.
        guided: [N, C, h, w] reconstructed under the label.
        unguided: [N, C, h, w] without guidance; None if the method has none.
        stop_index: [N] where inversion stopped, on the CPU.
        rows: [N] of the network that each image has taken, on the CPU.
        left: reconstructions that are still to be made.
    """

    x: Tensor
    labels: Tensor
    mask: Tensor | None = None
    ticket: Any = None
    guided: Tensor = field(init=False)
    unguided: Tensor | None = field(init=False, default=None)
    stop_index: Tensor = field(init=False)
    nfe: list[int] = field(init=False)
    left: int = field(init=False)


class Chain:
    """One state x on its way: an image's inversion, then its guided or unguided denoising, or both while they are the same."""

    __slots__ = (
        "asleep",
        "guided",
        "image",
        "index",
        "inverting",
        "job",
        "reference",
        "slot",
        "taken",
        "unguided",
    )

    def __init__(self, job: Job, image: int):
        self.job, self.image, self.slot, self.reference = job, image, -1, -1
        self.inverting, self.index, self.taken = True, 0, 0
        self.guided, self.unguided = True, False
        self.asleep = False
        """It is not known yet whether it has stopped."""

    def twin(self, slot: int) -> Chain:
        """The unguided part of it, which goes its own way from here on."""
        twin = Chain(self.job, self.image)
        twin.slot, twin.inverting, twin.index, twin.taken = slot, False, self.index, self.taken
        twin.guided, twin.unguided, self.unguided = False, True, False
        return twin


class Table:
    """What each row of a pass needs to know, by :meth:`row`: S rows for inversion, then S for denoising."""

    def __init__(self, method: Method, like: Tensor):
        schedule, guidance = method.schedule, method.guidance
        steps, device = len(schedule), like.device
        begin = Level.of(torch.cat([schedule.inversion_from, schedule.denoising_from]), like)
        end = Level.of(torch.cat([schedule.inversion_to, schedule.denoising_to]), like)
        self.levels = torch.stack([*begin, *end], dim=1)
        self.timesteps = torch.cat([schedule.timesteps] * 2).to(device)
        inversion = torch.full((steps,), guidance.inversion_scale)
        denoising = guidance.denoising_scales(schedule.timesteps, method.train_steps)
        self.scales = torch.cat([inversion, denoising]).to(like).view(-1, 1, 1, 1)
        masked = guidance.cam_cut is not None
        self.steers = {
            True: guidance.steers(inversion, False).tolist(),
            False: guidance.steers(denoising, masked).tolist(),
        }
        self.tells = {
            True: guidance.tells(inversion, False).tolist(),
            False: guidance.tells(denoising, masked).tolist(),
        }
        crops = guidance.crops(steps, like.shape[-1])
        self.crops = None if crops is None else crops.to(device)
        self.clip = (
            (torch.arange(2 * steps) > 0).to(device).view(-1, 1, 1, 1) if method.clip else None
        )
        self.steps = steps

    def row(self, chain: Chain) -> int:
        """Of a chain's next step."""
        return chain.index if chain.inverting else self.steps + chain.index
