"""How long the stages of a batch take, without making the device wait."""

import time
from typing import Any

import torch


class Stopwatch:
    """Seconds by name; on CUDA, events that are read when the batch is over."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, Any]] = []

    def start(self, device: torch.device) -> None:
        """A new batch."""
        self.on_cuda = device.type == "cuda"
        self.marks = [("", self._now())]

    def lap(self, name: str) -> None:
        """What was done since the last mark is called so."""
        self.marks.append((name, self._now()))

    def seconds(self) -> dict[str, float]:
        """By name; waits for the device."""
        if self.marks and self.on_cuda:
            self.marks[-1][1].synchronize()
        spans = zip(self.marks, self.marks[1:], strict=False)
        return {name: a.elapsed_time(b) / 1000 if self.on_cuda else b - a for (_, a), (name, b) in spans}

    def _now(self) -> Any:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
