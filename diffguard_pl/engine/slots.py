"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Pool:
    """GuidanceInputs of tensors that are taken and given back; grows when all are taken.

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
            self.tensors = [
                torch.cat([tensor, tensor.new_zeros((more, *tensor.shape[1:]))])
                for tensor in self.tensors
            ]
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
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )
