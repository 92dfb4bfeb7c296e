"""Continuous batching: the network's batch is kept full with steps of different images.

Each image starts as one trajectory, inversion and then denoising; at the first guided step its
unguided reconstruction forks off as a second one. Each pass of the network advances as many
trajectories as fit by one step, whatever their direction and timestep. When one ends, the next
image takes its place, as requests do in a language-model server (Orca, Yu et al. 2022). Each row is
computed as in :mod:`.reference`, which has the method in plain loops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion.ddim import Level, step
from ..diffusion.guidance import GuidanceInputs, GuidedNoise
from ..diffusion.path import Path, step_statistics
from ..diffusion.sampling import GuidedSampler
from ..stages import PathGate
from .slots import AsyncFlags, SlotPool, to_device
from .trajectory import Request, StepTable, Trajectory

MAX_PENDING_PER_SLOT = 4
"""Images per slot whose results may be held back by an older image that takes many steps."""


class Batch(NamedTuple):
    """Rows of one pass: n trajectories, of which the first g are guided, then k unguided forks.

    The forks are those of the first k trajectories.

    Attributes:
        trajectories: The n trajectories.
        forks: The k forks.
        num_guided: Number g.
        source: [n + k] slot that each state is read from.
        target: [n + k] slot that it is written to.
        table_row: [n + k] row in the :class:`StepTable`.
        steps_taken: [n + k] denoising steps taken before.
        conditional: [n + k] 1 where one evaluation under the label already gives the guided noise.
    """

    trajectories: list[Trajectory]
    forks: list[Trajectory]
    num_guided: int
    source: Tensor
    target: Tensor
    table_row: Tensor
    steps_taken: Tensor
    conditional: Tensor


class Engine:
    """Runs requests through full batches and returns them in the order of submission.

    Memory is bounded by the slots: about twice as many images are in flight at most, and at most
    ``MAX_PENDING_PER_SLOT`` times as many wait to be returned, besides those of the last request.

    Args:
        sampler: Diffusion model, guidance and settings.
        slots: Number of rows of the network's batch.
        before_pass: Called before each pass of the network.
        defer_stop_check: Read early-stop flags one pass late to avoid a device sync. Defaults to
            True on CUDA.

    Attributes:
        nfe: Network evaluations so far; padding rows of a compiled network are not
            counted.
        passes: Passes of the network so far.
    """

    def __init__(
        self,
        sampler: GuidedSampler,
        slots: int,
        before_pass: Callable[[], None] = lambda: None,
        defer_stop_check: bool | None = None,
    ):
        self.sampler, self.settings = sampler, sampler.settings
        self.slots, self.before_pass = slots, before_pass
        self.defer_stop_check = defer_stop_check
        self.nfe = self.passes = 0

        # Requests in the order of submission, and the trajectories of their images.
        self.requests: deque[Request] = deque()
        self.waiting: deque[Trajectory] = deque()
        self.active: list[Trajectory] = []

        # Checks whose flags have not been read, the oldest first, and what to do where one is set.
        self.checks: deque[tuple[AsyncFlags, list[Trajectory], Callable[[Trajectory], None]]]
        self.checks = deque()

        # States of active trajectories (see _load), and what early stop compares them to.
        self.states, self.references = SlotPool(slots), SlotPool(slots)
        self._table: StepTable | None = None

        # Schedule index at which denoising starts, for each index at which inversion may stop.
        stop_index = torch.arange(len(self.settings.schedule))
        self.first_denoising_index = self.settings.first_denoising_index(stop_index).tolist()

    @property
    def utilisation(self) -> float:
        """Fraction of the batch that was filled with images, over all passes so far."""
        return self.nfe / max(1, self.passes * self.slots)

    @property
    def table(self) -> StepTable:
        """Constants of every step; available once the first images have arrived."""
        assert self._table is not None
        return self._table

    def submit(self, request: Request) -> None:
        """Queue a request for :meth:`run`."""
        if self._table is None and len(request.x):
            self._table = StepTable(self.sampler, request.x)
            if self.defer_stop_check is None:
                self.defer_stop_check = request.x.is_cuda
        request.allocate_results(self.settings)
        self.requests.append(request)
        if request.missing:
            self.waiting.extend(Trajectory(request, image) for image in range(len(request.x)))

    def run(self, drain: bool = False) -> list[Request]:
        """Work until no image waits for a slot, or with ``drain`` until all images are done.

        Returns:
            The requests that are done.
        """
        done: list[Request] = []
        while True:
            # Requests are returned in order: one that is done waits for those before it.
            while self.requests and self.requests[0].missing == 0:
                done.append(self.requests.popleft())

            # Too many results wait for older images: finish those before new ones begin.
            backlog = self._num_pending() > MAX_PENDING_PER_SLOT * self.slots
            partial_batches = drain or backlog
            if not self.waiting and not (partial_batches and self.active):
                return done

            # Start new images. Without a full batch, wait for more to be submitted.
            if drain or not backlog:
                ready = self._admit()
                if ready < self.slots and not partial_batches:
                    return done
            self._pass(longest_first=drain and not self.waiting)

    def _pass(self, longest_first: bool) -> None:
        """Advance as many trajectories as fit in the batch by one step."""
        forking, guided, others = self._choose(longest_first)
        if not (forking or guided or others):
            # All trajectories await a check.
            self._collect_flags()
            return
        self.before_pass()

        # One step of all rows: read their states, predict the noise, step, write back.
        batch = self._gather(forking, guided, others)
        x = self._take_step(batch)
        self._scatter(batch, x)

        # Flags of earlier passes have arrived by now; those of this pass may not have.
        arrived = len(self.checks)
        self._request_gate_flags(batch.trajectories)
        self._request_stop_flags(batch.trajectories, x)
        self._advance(batch)
        for _ in range(arrived if self.defer_stop_check else len(self.checks)):
            self._collect_flags()

    def _num_pending(self) -> int:
        """Return the number of images in all requests but the last."""
        if not self.requests:
            return 0
        return sum(len(request.x) for request in self.requests) - len(self.requests[-1].x)

    def _admit(self) -> int:
        """Start waiting images until there is work for a full batch.

        Returns:
            The network evaluations that are ready.
        """
        ready = sum(self._nfe_of_next_step(t) for t in self.active if not t.pending_checks)

        # Images in order of arrival, until they fill the batch.
        admitted: dict[int, list[Trajectory]] = {}
        while self.waiting and ready < self.slots:
            trajectory = self.waiting.popleft()
            admitted.setdefault(id(trajectory.request), []).append(trajectory)
            self.active.append(trajectory)
            ready += self._nfe_of_next_step(trajectory)

        # One copy to the slots for each request.
        for trajectories in admitted.values():
            self._load(trajectories)
        return ready

    def _load(self, trajectories: list[Trajectory]) -> None:
        """Copy the images of one request into slots."""
        request = trajectories[0].request
        images = to_device([t.image for t in trajectories], request.x.device)
        x = request.x[images]
        state = {"x": x, "labels": request.labels[images]}
        if request.mask is not None:
            state["mask"] = request.mask[images]
        if self.settings.path_steps:
            state["eps"] = torch.zeros_like(x)
            state["path"] = Path.empty(x, len(self.settings.schedule)).values
        for trajectory, slot in zip(trajectories, self.states.put(state), strict=True):
            trajectory.slot = slot

        # What adaptive early stop compares the states to, computed once for each image.
        if self.sampler.early_stop:
            reference = dict(enumerate(self.sampler.early_stop.reference(x)))
            reference_slots = self.references.put(reference)
            for trajectory, slot in zip(trajectories, reference_slots, strict=True):
                trajectory.reference_slot = slot

    def _is_guided(self, trajectory: Trajectory) -> bool:
        """Return whether the next step is guided, or separates guided from unguided denoising."""
        row = self.table.row(trajectory)
        separates = self.table.needs_single_call[row] and trajectory.yields_unguided
        return trajectory.yields_guided and (self.table.is_guided[row] or separates)

    def _is_conditional(self, trajectory: Trajectory) -> bool:
        """Return whether one evaluation under the label gives the guided noise of the next step."""
        single_call = self.table.needs_single_call[self.table.row(trajectory)]
        return trajectory.yields_guided and single_call

    def _nfe_of_next_step(self, trajectory: Trajectory) -> int:
        """Return the network evaluations of the next step."""
        return self.sampler.guidance.nfe_per_step if self._is_guided(trajectory) else 1

    def _choose(
        self, longest_first: bool
    ) -> tuple[list[Trajectory], list[Trajectory], list[Trajectory]]:
        """Choose the trajectories of a pass: those that fork, other guided ones, and the rest.

        The oldest come first, so that requests are done in order. At the end, those with the most
        steps left come first, so that all end together.
        """
        candidates = self.active
        if longest_first:
            candidates = sorted(candidates, key=_progress)
        forking: list[Trajectory] = []
        guided: list[Trajectory] = []
        others: list[Trajectory] = []
        room = self.slots
        for trajectory in candidates:
            # A guided step may need more room than is left; an unguided one may still fit.
            nfe = self._nfe_of_next_step(trajectory)
            if trajectory.pending_checks or nfe > room:
                continue

            # The first guided step of a trajectory that yields both reconstructions forks it.
            if not self._is_guided(trajectory):
                others.append(trajectory)
            elif trajectory.yields_unguided:
                forking.append(trajectory)
            else:
                guided.append(trajectory)
            room -= nfe
            if room == 0:
                break
        return forking, guided, others

    def _gather(
        self, forking: list[Trajectory], guided: list[Trajectory], others: list[Trajectory]
    ) -> Batch:
        """Lay out the rows of a pass, and fork off unguided trajectories."""
        # Guided rows come first, see GuidanceInputs. Count before forking: the first step of a fork
        # costs no evaluation.
        trajectories = [*forking, *guided, *others]
        for trajectory in trajectories:
            trajectory.request.nfe[trajectory.image] += self._nfe_of_next_step(trajectory)

        # One row for each trajectory: source, target, table_row, steps_taken, conditional.
        rows = []
        num_guided = len(forking) + len(guided)
        for i, trajectory in enumerate(trajectories):
            slot, table_row = trajectory.slot, self.table.row(trajectory)
            conditional = i >= num_guided and self._is_conditional(trajectory)
            rows.append((slot, slot, table_row, trajectory.steps_taken, conditional))

        # One row for each fork, which takes the same step without guidance.
        slots = self.states.take(len(forking))
        forks = [t.fork_unguided(slot) for t, slot in zip(forking, slots, strict=True)]
        for i, fork in enumerate(forks):
            source, _, table_row, _, _ = rows[i]
            rows.append((source, fork.slot, table_row, 0, False))

        # One copy to the device for the whole plan.
        columns = to_device(rows, self.states.tensors["x"].device).T
        return Batch(trajectories, forks, num_guided, *columns)

    def _take_step(self, batch: Batch) -> Tensor:
        """Return the states [n + k, C, h, w] after a step."""
        n, table = len(batch.trajectories), self.table

        # States, and their levels before and after the step.
        x = self.states.tensors["x"][batch.source]
        before, after = table.levels[batch.table_row].split(2, dim=1)
        level, to = Level(*before.unbind(dim=1)), Level(*after.unbind(dim=1))

        # eps_hat(x_t, y), with one network call for all rows.
        predicted = self.sampler.guidance.predict_eps(
            self._evaluate_network,
            x,
            table.timesteps[batch.table_row[:n]],
            level,
            self._guidance_inputs(batch),
            self.sampler.classifier,
        )
        self.passes += 1
        if self.settings.path_steps:
            self._record(batch, predicted)

        # DDIM step, towards noise or towards the image.
        return step(x, predicted.eps, level, to)

    def _record(self, batch: Batch, predicted: GuidedNoise) -> None:
        """Write statistics of the noise to the paths of the trajectories, but not of the forks."""
        n, state = len(batch.trajectories), self.states.tensors
        slots, eps = batch.source[:n], predicted.eps[:n]

        # Before the first step of a direction there is no noise to compare to.
        is_first = (batch.steps_taken[:n] == 0).view(-1, 1, 1, 1)
        previous = torch.where(is_first, torch.nan, state["eps"][slots])
        values = step_statistics(eps, previous, predicted)
        state["path"][slots, batch.table_row[:n]] = values
        state["eps"][slots] = eps

    def _guidance_inputs(self, batch: Batch) -> GuidanceInputs:
        """Return what guidance needs to know about each row."""
        n, g, table = len(batch.trajectories), batch.num_guided, self.table
        guided_row = batch.table_row[:g]

        # The network sees "no class", except in conditional rows.
        labels = self.states.tensors["labels"][batch.source]
        null_labels = self.sampler.null_labels(labels)

        # Distinct semantic guidance limits denoising, never inversion.
        guided_mask = None
        if "mask" in self.states.tensors:
            inverting = (guided_row < table.steps).view(-1, 1, 1, 1)
            guided_mask = self.states.tensors["mask"][batch.source[:g]] | inverting
        return GuidanceInputs(
            network_labels=torch.where(batch.conditional.bool(), labels, null_labels)[:n],
            labels=labels[:g],
            scale=table.scales[guided_row],
            crops=None if table.crops is None else table.crops[batch.steps_taken[:g]],
            mask=guided_mask,
            clip=None if table.clip is None else table.clip[batch.table_row],
            unguided_copies=len(batch.forks),
        )

    def _evaluate_network(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.nfe += len(x)
        return self.sampler.network(x, t, labels)

    def _scatter(self, batch: Batch, x: Tensor) -> None:
        """Write the states back, and copy label and mask to the slots of the forks."""
        self.states.tensors["x"][batch.target] = x
        if batch.forks:
            n = len(batch.trajectories)
            for name in self.states.tensors.keys() & {"labels", "mask"}:
                tensor = self.states.tensors[name]
                tensor[batch.target[n:]] = tensor[batch.source[n:]]

    def _request_stop_flags(self, trajectories: list[Trajectory], x: Tensor) -> None:
        """Start an adaptive early-stop check of all trajectories that may be inverted further."""
        early_stop = self.sampler.early_stop
        if early_stop is None:
            return

        # Those at their last inversion step stop anyway.
        last = self.settings.inversion_steps - 1
        rows = [i for i, t in enumerate(trajectories) if t.inverting and t.index < last]
        if not rows:
            return

        # Compare each state to its image. Until the flags arrive, its trajectory takes no step.
        checked = [trajectories[i] for i in rows]
        plan = [(i, trajectories[i].reference_slot) for i in rows]
        index, reference_slots = to_device(plan, x.device).T
        reference = [tensor[reference_slots] for tensor in self.references.tensors.values()]
        self._check(early_stop.should_stop(x[index], reference), checked, self._start_denoising)

    def _request_gate_flags(self, trajectories: list[Trajectory]) -> None:
        """Start to ask the gates which trajectories leave once their path scores are known."""
        asked: dict[PathGate, list[Trajectory]] = {}
        for trajectory in trajectories:
            gate = trajectory.request.path_gate
            if gate and trajectory.inverting and trajectory.index == gate.steps - 1:
                asked.setdefault(gate, []).append(trajectory)
        for gate, of_gate in asked.items():
            slots = to_device([t.slot for t in of_gate], self.states.tensors["x"].device)
            path = Path(self.states.tensors["path"][slots], self.states.tensors["x"][0].numel())
            self._check(~gate.decide(path), of_gate, self._leave)

    def _check(
        self, flags: Tensor, trajectories: list[Trajectory], act: Callable[[Trajectory], None]
    ) -> None:
        """Act on those trajectories whose flag is set, once the flags have arrived on the CPU.

        Until then, they take no step.
        """
        self.checks.append((AsyncFlags(flags), trajectories, act))
        for trajectory in trajectories:
            trajectory.pending_checks += 1

    def _collect_flags(self) -> None:
        """Wait for the oldest check, and act where its flags are set."""
        flags, trajectories, act = self.checks.popleft()
        for trajectory, is_set in zip(trajectories, flags.wait(), strict=True):
            trajectory.pending_checks -= 1
            if is_set and not trajectory.left:
                act(trajectory)
        # All at once: one copy for each request.
        self._finish([t for t in trajectories if t.left and t.slot >= 0])

    def _leave(self, trajectory: Trajectory) -> None:
        """End a trajectory without a reconstruction."""
        trajectory.left = True
        trajectory.request.stop_index[trajectory.image] = -1

    def _advance(self, batch: Batch) -> None:
        """Move the trajectories of a pass to their next step, and finish those at their end."""
        done: list[Trajectory] = []
        for trajectory in [*batch.trajectories, *batch.forks]:
            trajectory.steps_taken += 1
            trajectory.index += 1 if trajectory.inverting else -1
            if trajectory.inverting:
                # Early stop may turn it before this; see _collect_flags.
                if trajectory.index < self.settings.inversion_steps:
                    continue
                if self.settings.reconstructs:
                    self._start_denoising(trajectory)
                else:
                    done.append(trajectory)
            elif trajectory.index < self.settings.skip_last_steps:
                done.append(trajectory)
        self._insert_forks(batch)
        self._finish(done)

    def _insert_forks(self, batch: Batch) -> None:
        """Put each fork behind the trajectory that it comes from, as if equally old."""
        if not batch.forks:
            return
        forks = {id(t): fork for t, fork in zip(batch.trajectories, batch.forks, strict=False)}
        active = []
        for trajectory in self.active:
            active.append(trajectory)
            if id(trajectory) in forks:
                active.append(forks[id(trajectory)])
        self.active = active

    def _start_denoising(self, trajectory: Trajectory) -> None:
        """Turn from inversion to denoising."""
        stop_index = trajectory.index - 1
        trajectory.request.stop_index[trajectory.image] = stop_index
        if trajectory.reference_slot >= 0:
            self.references.give_back([trajectory.reference_slot])
            trajectory.reference_slot = -1

        # Both reconstructions start as one trajectory.
        trajectory.inverting, trajectory.steps_taken = False, 0
        trajectory.index = self.first_denoising_index[stop_index]
        trajectory.yields_unguided = self.settings.with_unguided

    def _finish(self, trajectories: list[Trajectory]) -> None:
        """Copy results to their requests and free the slots."""
        if not trajectories:
            return

        # One copy for each request and kind of result; without a guided step, one trajectory
        # yields both reconstructions.
        requests = {id(t.request): t.request for t in trajectories}
        for request in requests.values():
            own = [t for t in trajectories if t.request is request]
            guided = [t for t in own if t.yields_guided]
            unguided = [t for t in own if t.yields_unguided]
            self._copy("x", [t for t in guided if not t.left], request.guided)
            self._copy("x", [t for t in unguided if not t.left], request.unguided)
            self._copy("path", guided, request.path.values if request.path else None)
            request.missing -= len(guided) + len(unguided)
            if self.settings.with_unguided:
                # The second reconstruction of those that left before it could fork off.
                request.missing -= sum(t.left and not t.yields_unguided for t in own)

        # Their slots are free for the next images.
        self.states.give_back([t.slot for t in trajectories])
        self.references.give_back([t.reference_slot for t in trajectories if t.reference_slot >= 0])
        for trajectory in trajectories:
            trajectory.slot = trajectory.reference_slot = -1
        finished = {id(t) for t in trajectories}
        self.active = [t for t in self.active if id(t) not in finished]

    def _copy(self, name: str, trajectories: list[Trajectory], result: Tensor | None) -> None:
        """Copy what trajectories of one request have in the slots to a result of the request."""
        if result is None or not trajectories:
            return
        plan = [(t.image, t.slot) for t in trajectories]
        images, slots = to_device(plan, result.device).T
        result[images] = self.states.tensors[name][slots]


def _progress(trajectory: Trajectory) -> tuple[bool, int]:
    """Return a sort key: inversion before denoising, most remaining steps first."""
    remaining = -trajectory.index if trajectory.inverting else trajectory.index
    return not trajectory.inverting, -remaining
