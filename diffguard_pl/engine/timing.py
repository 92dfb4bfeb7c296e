"""How long the stages of a run take, without making the device wait."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds by name; on CUDA, between events that are read when they have happened."""

    def __init__(self) -> None:
        self.total: dict[str, float] = defaultdict(float)
        self.running: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def timing(self, name: str, device: torch.device) -> Iterator[None]:
        """What is done in the block is called so."""
        if device.type != "cuda":
            began = time.perf_counter()
            yield
            self.total[name] += time.perf_counter() - began
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(torch.cuda.current_stream(device))
        yield
        end.record(torch.cuda.current_stream(device))
        self.running.append((name, begin, end))

    def seconds(self) -> dict[str, float]:
        """By name, of what the device has done so far."""
        done = [lap for lap in self.running if lap[2].query()]
        for name, begin, end in done:
            self.total[name] += begin.elapsed_time(end) / 1000
        self.running = [lap for lap in self.running if lap not in done]
        return dict(self.total)
