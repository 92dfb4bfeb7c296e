"""The stopwatch adds up the time of blocks by name."""

import time

import torch

from diffguard_pl.engine.timing import Stopwatch

CPU = torch.device("cpu")


def test_the_time_of_blocks_adds_up_by_name(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 11.5, 20.0, 20.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch()
    for name in ("classify", "diffuse", "classify"):
        with stopwatch.timing(name, CPU):
            pass
    assert stopwatch.seconds() == {"classify": 2.25, "diffuse": 1.5}
