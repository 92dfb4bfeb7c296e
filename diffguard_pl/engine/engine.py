"""Continuous batching: the network's batch is kept full with rows of different images.

Each image is a program of its own: invert until it stops, then denoise with and without guidance. Every pass takes one step of as
many programs as fill the batch, whatever phase and time step they are in; when a program is done the next image takes its place, as
requests do in a server of language models (Yu et al. 2022, Orca). The arithmetic of a row is that of :mod:`.ddim`, which
says the same in two plain loops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..diffusion.ddim import Level, first_denoising_index, step
from ..diffusion.guidance import GuidanceInputs, Network
from .slots import Pool, Reading, to_device
from .trajectory import Chain, Job, Method, Table

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
        self.network, self.method, self.slots, self.before_pass = (
            network,
            method,
            slots,
            before_pass,
        )
        self.late = late
        self.jobs: deque[Job] = deque()
        self.waiting: deque[Chain] = deque()
        self.active: list[Chain] = []
        self.unread: deque[tuple[Reading, list[Chain]]] = deque()
        self.states, self.references = Pool(slots), Pool(slots)
        self.nfe = self.passes = 0
        self.table: Any = None
        indices = torch.arange(len(method.schedule))
        self.starts = first_denoising_index(
            indices, len(indices), method.skip_first_steps, method.forback_skip_diff
        ).tolist()

    @property
    def utilisation(self) -> float:
        """Share of the batch that was of use, over all passes so far."""
        return self.nfe / max(1, self.passes * self.slots)

    def submit(self, job: Job) -> None:
        """Take a job; :meth:`run` works on it."""
        method = self.method
        if self.table is None and len(job.x):
            self.table = Table(method, job.x)
            self.late = job.x.is_cuda if self.late is None else self.late
        job.guided = torch.empty_like(job.x)
        job.unguided = torch.empty_like(job.x) if method.unguided else None
        job.stop_index = torch.full((len(job.x),), method.inversion_steps - 1)
        job.nfe = [0] * len(job.x)
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
            slots = self.states.put(
                [x, job.labels[images], *([] if job.mask is None else [job.mask[images]])]
            )
            references = (
                self.references.put(self.method.stop.reference(x))
                if self.method.stop
                else [-1] * len(chains)
            )
            for chain, slot, reference in zip(chains, slots, references, strict=True):
                chain.slot, chain.reference = slot, reference
        return ready

    def _acts(self, chain: Chain) -> bool:
        """Whether guidance steers its next step, or parts it from what is unguided."""
        steers, tells = (
            kind[chain.inverting][chain.index] for kind in (self.table.steers, self.table.tells)
        )
        return chain.guided and (steers or (tells and chain.unguided))

    def _need(self, chain: Chain) -> int:
        """GuidanceInputs of the network that its next step takes."""
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
            candidates = sorted(
                candidates,
                key=lambda c: (c.inverting, -c.index if c.inverting else c.index),
                reverse=True,
            )
        for chain in candidates:
            need = self._need(chain)
            if chain.asleep or need > room:
                continue
            room -= need
            (others if not self._acts(chain) else parting if chain.unguided else steered).append(
                chain
            )
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
        twins = [
            chain.twin(slot)
            for chain, slot in zip(parting, self.states.take(len(parting)), strict=True)
        ]

        told = [
            i >= g and c.guided and table.tells[c.inverting][c.index] for i, c in enumerate(chains)
        ]
        plan = [
            (c.slot, c.slot, table.row(c), c.taken, tell)
            for c, tell in zip(chains, told, strict=True)
        ]
        plan += [
            (source, twin.slot, row, 0, False)
            for (source, _, row, _, _), twin in zip(plan, twins, strict=False)
        ]
        source, target, row, taken, tell = to_device(plan, device).T
        n = len(chains)
        x, labels, *mask = (tensor[source] for tensor in self.states.tensors)
        level, to = (Level(*ends.unbind(dim=1)) for ends in table.levels[row].split(2, dim=1))
        null = labels if method.null_label is None else torch.full_like(labels, method.null_label)
        rows = GuidanceInputs(
            asked=torch.where(tell.bool(), labels, null)[:n],
            labels=labels[:g],
            scale=table.scales[row[:g]],
            crops=None if table.crops is None else table.crops[taken[:g]],
            mask=mask[0][:g] | (row[:g] < len(method.schedule)).view(-1, 1, 1, 1) if mask else None,
            clip=None if table.clip is None else table.clip[row],
            twins=len(twins),
        )
        for chain in chains:
            chain.job.nfe[chain.image] += self._need(chain)
        eps = method.guidance.noise(
            self._ask, x, table.timesteps[row[:n]], level, rows, method.classifier
        )
        x = step(x, eps, level, to)
        self.states.tensors[0][target] = x
        for tensor in self.states.tensors[1:] if twins else ():
            tensor[target[n:]] = tensor[source[n:]]
        self.passes += 1

        heard = len(self.unread)
        stoppable = [
            i
            for i, c in enumerate(chains)
            if c.inverting and method.stop and c.index + 1 < method.inversion_steps
        ]
        if stoppable:
            positions, kept = to_device([(i, chains[i].reference) for i in stoppable], device).T
            assert method.stop is not None
            done = method.stop.done(
                x[positions], [tensor[kept] for tensor in self.references.tensors]
            )
            self.unread.append((Reading(done), [chains[i] for i in stoppable]))
            for i in stoppable:
                chains[i].asleep = True
        self._advance(chains, twins)
        for _ in range(heard if self.late else len(self.unread)):
            self._hear()

    def _ask(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.nfe += len(x)
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
            self.active = [
                c for chain in self.active for c in (chain, after.get(id(chain))) if c is not None
            ]
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
