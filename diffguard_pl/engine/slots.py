"""Device memory of the engine: slots for tensors, and flags that come without a device sync."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class SlotPool:
    """Rows of several tensors that are taken and given back; grows when all are taken.

    Args:
        size: Number of slots to begin with.

    Attributes:
        tensors: By name, the tensors [slots, ...].
    """

    def __init__(self, size: int):
        self.first_size, self.size = size, 0
        self.free: list[int] = []
        self.tensors: dict[Hashable, Tensor] = {}

    def put(self, rows: Mapping[Any, Tensor]) -> list[int]:
        """Store rows [n, ...] of each tensor and return their slots."""
        if not self.tensors:
            self.tensors = {name: row.new_empty((0, *row.shape[1:])) for name, row in rows.items()}

        # Copy the rows to free slots.
        first = next(iter(rows.values()))
        slots = self.take(len(first))
        index = to_device(slots, first.device)
        for name, row in rows.items():
            self.tensors[name][index] = row
        return slots

    def take(self, count: int) -> list[int]:
        """Return slots that are free."""
        if count > len(self.free):
            self._grow(count - len(self.free))
        return [self.free.pop() for _ in range(count)]

    def give_back(self, slots: list[int]) -> None:
        """Free these slots."""
        self.free += slots

    def _grow(self, missing: int) -> None:
        # Grow by half at least, so that copies cost little in total.
        more = max(missing, self.size // 2, self.first_size)
        self.tensors = {
            name: torch.cat([tensor, tensor.new_zeros((more, *tensor.shape[1:]))])
            for name, tensor in self.tensors.items()
        }
        self.free += range(self.size, self.size + more)
        self.size += more


class AsyncFlags:
    """Bool flags on their way to the CPU; on CUDA they are copied while the device goes on.

    Args:
        flags: bool [n].
    """

    def __init__(self, flags: Tensor):
        self.event: torch.cuda.Event | None = None
        if flags.is_cuda:
            # Only copies to pinned memory are asynchronous.
            self.flags = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            self.flags.copy_(flags, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(flags.device))
        else:
            self.flags = flags

    def wait(self) -> list[bool]:
        """Wait for the copy and return the flags."""
        if self.event is not None:
            self.event.synchronize()
        return self.flags.tolist()


def to_device(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """Return integers as a tensor on the device, without a device sync."""
    tensor = torch.tensor(numbers, dtype=torch.long)
    # A copy from pageable memory would wait for the device.
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
