"""Continuous batching: the network's batch is kept full with rows of different images.

Each image is a program of its own: invert until it stops, then denoise with and without guidance. Every pass takes one step of as
many programs as fill the batch, whatever phase and time step they are in; when a program is done the next image takes its place, as
requests do in a server of language models (Yu et al. 2022, Orca). The arithmetic of a row is that of :mod:`.ddim`, which
says the same in two plain loops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .ddim import Level, first_denoising_index, step
from .early_stop import EarlyStop
from .guidance import Guidance, Network, Protected, Rows
from .schedule import Schedule


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
    rows: list[int] = field(init=False)
    left: int = field(init=False)


class Chain:
    """One state x on its way: an image's inversion, then its guided or unguided denoising, or both while they are the same."""

    __slots__ = ("asleep", "guided", "image", "index", "inverting", "job", "reference", "slot", "taken", "unguided")

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


HELD = 4
"""Images a slot whose results may be held back by an older image that takes long."""


class Engine:
    """Runs jobs through full batches; results come back job by job, in the order in which they were submitted.

    Memory is bounded by the slots: at most about twice as many images are on their way, and those that wait, done or not, for their
    turn to go back are at most ``HELD`` times as many, besides the job that came last.

    Args:
        network: the diffusion model.
        method: what to do with each image.
        slots: rows of the batch.
        before_pass: called before each pass of the network.
        late: learn only a pass later which images have stopped, so that the device need not wait; none: on a GPU.

    Attributes:
        rows: that were of use so far.
        passes: of the network so far.
    """

    def __init__(
        self,
        network: Network,
        method: Method,
        slots: int,
        before_pass: Callable[[], None] = lambda: None,
        late: bool | None = None,
    ):
        self.network, self.method, self.slots, self.before_pass = network, method, slots, before_pass
        self.late = late
        self.jobs: deque[Job] = deque()
        self.waiting: deque[Chain] = deque()
        self.active: list[Chain] = []
        self.unread: deque[tuple[Reading, list[Chain]]] = deque()
        self.states, self.references = Pool(slots), Pool(slots)
        self.rows = self.passes = 0
        self.table: Any = None
        indices = torch.arange(len(method.schedule))
        self.starts = first_denoising_index(indices, len(indices), method.skip_first_steps, method.forback_skip_diff).tolist()

    @property
    def utilisation(self) -> float:
        """Share of the batch that was of use, over all passes so far."""
        return self.rows / max(1, self.passes * self.slots)

    def submit(self, job: Job) -> None:
        """Take a job; :meth:`run` works on it."""
        method = self.method
        if self.table is None and len(job.x):
            self.table = Table(method, job.x)
            self.late = job.x.is_cuda if self.late is None else self.late
        job.guided = torch.empty_like(job.x)
        job.unguided = torch.empty_like(job.x) if method.unguided else None
        job.stop_index = torch.full((len(job.x),), method.inversion_steps - 1)
        job.rows = [0] * len(job.x)
        job.left = len(job.x) * (1 + method.unguided)
        self.jobs.append(job)
        self.waiting.extend(Chain(job, i) for i in range(len(job.x)))

    def run(self, drain: bool = False) -> list[Job]:
        """Work until no image waits for a slot, or until all is done; returns the jobs that are done."""
        done: list[Job] = []
        while True:
            while self.jobs and self.jobs[0].left == 0:
                done.append(self.jobs.popleft())
            held = sum(len(job.x) for job in self.jobs) - (len(self.jobs[-1].x) if self.jobs else 0)
            hurry = drain or held > HELD * self.slots
            if not (self.waiting or (hurry and self.active)):
                return done
            if self._admit(none=hurry and not drain) < self.slots and not hurry:
                return done
            self._pass(longest_first=drain and not self.waiting)

    def _admit(self, none: bool = False) -> int:
        """Begin with images that wait, until there are enough rows for a pass; returns how many there are."""
        ready = sum(self._need(chain) for chain in self.active if not chain.asleep)
        new: dict[int, list[Chain]] = {}
        while self.waiting and ready < self.slots and not none:
            chain = self.waiting.popleft()
            new.setdefault(id(chain.job), []).append(chain)
            self.active.append(chain)
            ready += self._need(chain)
        for chains in new.values():
            job, device = chains[0].job, chains[0].job.x.device
            images = to_device([chain.image for chain in chains], device)
            x = job.x[images]
            slots = self.states.put([x, job.labels[images], *([] if job.mask is None else [job.mask[images]])])
            references = self.references.put(self.method.stop.reference(x)) if self.method.stop else [-1] * len(chains)
            for chain, slot, reference in zip(chains, slots, references, strict=True):
                chain.slot, chain.reference = slot, reference
        return ready

    def _acts(self, chain: Chain) -> bool:
        """Whether guidance steers its next step, or parts it from what is unguided."""
        steers, tells = (kind[chain.inverting][chain.index] for kind in (self.table.steers, self.table.tells))
        return chain.guided and (steers or (tells and chain.unguided))

    def _need(self, chain: Chain) -> int:
        """Rows of the network that its next step takes."""
        return self.method.guidance.rows if self._acts(chain) else 1

    def _choose(self, longest_first: bool) -> tuple[list[Chain], list[Chain], list[Chain]]:
        """Who takes a step: chains that part in two, others that are steered, and all others.

        The oldest first, so that jobs are done in their order; at the end those that have longest to go, so that all are done
        together.
        """
        parting: list[Chain] = []
        steered: list[Chain] = []
        others: list[Chain] = []
        room = self.slots
        candidates = self.active
        if longest_first:
            candidates = sorted(candidates, key=lambda c: (c.inverting, -c.index if c.inverting else c.index), reverse=True)
        for chain in candidates:
            need = self._need(chain)
            if chain.asleep or need > room:
                continue
            room -= need
            (others if not self._acts(chain) else parting if chain.unguided else steered).append(chain)
            if room == 0:
                break
        return parting, steered, others

    def _pass(self, longest_first: bool) -> None:
        """One step of as many chains as fill the batch."""
        parting, steered, others = self._choose(longest_first)
        chains, g = [*parting, *steered, *others], len(parting) + len(steered)
        if not chains:  # all wait to hear whether they have stopped
            self._hear()
            return
        self.before_pass()
        method, table, device = self.method, self.table, self.states.tensors[0].device
        twins = [chain.twin(slot) for chain, slot in zip(parting, self.states.take(len(parting)), strict=True)]

        told = [i >= g and c.guided and table.tells[c.inverting][c.index] for i, c in enumerate(chains)]
        plan = [(c.slot, c.slot, table.row(c), c.taken, tell) for c, tell in zip(chains, told, strict=True)]
        plan += [(source, twin.slot, row, 0, False) for (source, _, row, _, _), twin in zip(plan, twins, strict=False)]
        source, target, row, taken, tell = to_device(plan, device).T
        n = len(chains)
        x, labels, *mask = (tensor[source] for tensor in self.states.tensors)
        level, to = (Level(*ends.unbind(dim=1)) for ends in table.levels[row].split(2, dim=1))
        null = labels if method.null_label is None else torch.full_like(labels, method.null_label)
        rows = Rows(
            asked=torch.where(tell.bool(), labels, null)[:n],
            labels=labels[:g],
            scale=table.scales[row[:g]],
            crops=None if table.crops is None else table.crops[taken[:g]],
            mask=mask[0][:g] | (row[:g] < len(method.schedule)).view(-1, 1, 1, 1) if mask else None,
            clip=None if table.clip is None else table.clip[row],
            twins=len(twins),
        )
        for chain in chains:
            chain.job.rows[chain.image] += self._need(chain)
        eps = method.guidance.noise(self._ask, x, table.timesteps[row[:n]], level, rows, method.classifier)
        x = step(x, eps, level, to)
        self.states.tensors[0][target] = x
        for tensor in self.states.tensors[1:] if twins else ():
            tensor[target[n:]] = tensor[source[n:]]
        self.passes += 1

        heard = len(self.unread)
        stoppable = [i for i, c in enumerate(chains) if c.inverting and method.stop and c.index + 1 < method.inversion_steps]
        if stoppable:
            positions, kept = to_device([(i, chains[i].reference) for i in stoppable], device).T
            assert method.stop is not None
            done = method.stop.done(x[positions], [tensor[kept] for tensor in self.references.tensors])
            self.unread.append((Reading(done), [chains[i] for i in stoppable]))
            for i in stoppable:
                chains[i].asleep = True
        self._advance(chains, twins)
        for _ in range(heard if self.late else len(self.unread)):
            self._hear()

    def _ask(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.rows += len(x)
        return self.network(x, t, labels)

    def _advance(self, chains: list[Chain], twins: list[Chain]) -> None:
        """Note that these have taken a step."""
        done: list[Chain] = []
        for chain in [*chains, *twins]:
            chain.taken += 1
            chain.index += 1 if chain.inverting else -1
            if chain.inverting and chain.index == self.method.inversion_steps:
                self._turn(chain)
            elif not chain.inverting and chain.index < self.method.skip_last_steps:
                done.append(chain)
        if twins:
            after = {id(chain): twin for chain, twin in zip(chains, twins, strict=False)}
            self.active = [c for chain in self.active for c in (chain, after.get(id(chain))) if c is not None]
        if done:
            self._finish(done)

    def _hear(self) -> None:
        """Learn which images have stopped."""
        reading, chains = self.unread.popleft()
        for chain, stopped in zip(chains, reading.get(), strict=True):
            chain.asleep = False
            if stopped:
                self._turn(chain)

    def _turn(self, chain: Chain) -> None:
        """From inversion to denoising."""
        stopped_at = chain.index - 1
        chain.job.stop_index[chain.image] = stopped_at
        if chain.reference >= 0:
            self.references.give([chain.reference])
        chain.inverting, chain.index, chain.taken = False, self.starts[stopped_at], 0
        chain.unguided = self.method.unguided

    def _finish(self, chains: list[Chain]) -> None:
        """Hand over the reconstructions of chains that are done."""
        for job in {id(chain.job): chain.job for chain in chains}.values():
            own = [chain for chain in chains if chain.job is job]
            for name in ("guided", "unguided"):
                made = [(chain.image, chain.slot) for chain in own if getattr(chain, name)]
                if made:
                    images, slots = to_device(made, job.x.device).T
                    getattr(job, name)[images] = self.states.tensors[0][slots]
                    job.left -= len(made)
        self.states.give([chain.slot for chain in chains])
        gone = {id(chain) for chain in chains}
        self.active = [chain for chain in self.active if id(chain) not in gone]


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
        self.steers = {True: guidance.steers(inversion, False).tolist(), False: guidance.steers(denoising, masked).tolist()}
        self.tells = {True: guidance.tells(inversion, False).tolist(), False: guidance.tells(denoising, masked).tolist()}
        crops = guidance.crops(steps, like.shape[-1])
        self.crops = None if crops is None else crops.to(device)
        self.clip = (torch.arange(2 * steps) > 0).to(device).view(-1, 1, 1, 1) if method.clip else None
        self.steps = steps

    def row(self, chain: Chain) -> int:
        """Of a chain's next step."""
        return chain.index if chain.inverting else self.steps + chain.index


class Pool:
    """Rows of tensors that are taken and given back; grows when all are taken.

    Args:
        size: to begin with.
    """

    def __init__(self, size: int):
        self.size, self.begin, self.free = 0, size, list[int]()
        self.tensors: list[Tensor] = []

    def put(self, rows: Sequence[Tensor]) -> list[int]:
        """Keep rows [n, ...] of each tensor; returns their places."""
        if not self.tensors:
            self.tensors = [row.new_empty((0, *row.shape[1:])) for row in rows]
        places = self.take(len(rows[0]))
        at = to_device(places, rows[0].device)
        for tensor, row in zip(self.tensors, rows, strict=True):
            tensor[at] = row
        return places

    def take(self, count: int) -> list[int]:
        """Places that nobody has."""
        if count > len(self.free):
            more = max(count - len(self.free), self.size // 2, self.begin)
            self.tensors = [torch.cat([tensor, tensor.new_zeros((more, *tensor.shape[1:]))]) for tensor in self.tensors]
            self.free += range(self.size, self.size + more)
            self.size += more
        return [self.free.pop() for _ in range(count)]

    def give(self, places: list[int]) -> None:
        """They are free again."""
        self.free += places


class Reading:
    """Flags on their way from the device; on a GPU they are copied while it goes on."""

    def __init__(self, flags: Tensor):
        self.event: torch.cuda.Event | None = None
        if flags.is_cuda:
            self.flags = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            self.flags.copy_(flags, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(flags.device))
        else:
            self.flags = flags

    def get(self) -> list[bool]:
        """Waits for them."""
        if self.event is not None:
            self.event.synchronize()
        return self.flags.tolist()


def to_device(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """Integers as a tensor, without waiting for the device."""
    tensor = torch.tensor(numbers, dtype=torch.long)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
