"""Time that the stages of a run take, measured without device syncs."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds by name. On CUDA they are taken between events, which are read once they are done."""

    def __init__(self) -> None:
        self.total: dict[str, float] = defaultdict(float)
        self.pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def timing(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        if device.type != "cuda":
            began = time.perf_counter()
            yield
            self.total[name] += time.perf_counter() - began
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(torch.cuda.current_stream(device))
        yield
        end.record(torch.cuda.current_stream(device))
        self.pending.append((name, start, end))

    def seconds(self) -> dict[str, float]:
        """Return the seconds by name of all blocks that the device has finished."""
        still_pending = []
        for name, start, end in self.pending:
            if end.query():
                self.total[name] += start.elapsed_time(end) / 1000
            else:
                still_pending.append((name, start, end))
        self.pending = still_pending
        return dict(self.total)
