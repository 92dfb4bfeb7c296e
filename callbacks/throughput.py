"""How fast a run is, and where its time goes."""

import resource
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch

from diffguard_pl.errors import InputError
from diffguard_pl.module import DiffGuardModule
from diffguard_pl.run import update_session


class ThroughputMonitor(pl.Callback):
    """Images/s, rows of the diffusion model/s, peak memory and seconds a stage: into ``run.json``, and to the loggers there are.

    Seconds a stage are of the first rank, and ``other`` is what is none of the four: loading and writing. The rest is of all ranks.

    Args:
        every: seconds between two notes.
    """

    def __init__(self, every: float = 30.0):
        if every <= 0:
            raise InputError(f"throughput.every={every}: expected seconds")
        self.every = every

    def on_test_start(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        self.began = self.last = time.monotonic()
        self.images, self.noted, self.stages = 0, 0, {"classify": 0.0, "invert": 0.0, "reconstruct": 0.0, "compare": 0.0}
        self.rows_before = pl_module.detector.unet_rows
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any) -> None:
        self.images += len(outputs["batch"]["image"])
        for name, seconds in pl_module.stopwatch.seconds().items():
            self.stages[name] += seconds
        if time.monotonic() - self.last >= self.every and trainer.is_global_zero:
            self._note(trainer, pl_module, self.totals(pl_module), "throughput/rank0/")
            self.last = time.monotonic()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        totals = self.totals(pl_module)
        pl_module.wait_for_others()
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, totals)
            totals |= {name: sum(one[name] for one in gathered) for name in ("images", "rows")}
            totals |= {name: max(one[name] for one in gathered) for name in ("seconds", "peak_memory_bytes")}
            totals |= _rates(totals)
        if trainer.is_global_zero:
            self._note(trainer, pl_module, totals, "throughput/")

    def totals(self, pl_module: DiffGuardModule) -> dict[str, Any]:
        """Of this rank, so far."""
        rows, seconds = pl_module.detector.unet_rows - self.rows_before, time.monotonic() - self.began
        stages = self.stages | {"other": max(0.0, seconds - sum(self.stages.values()))}
        peak = {"peak_memory_bytes": _peak_memory(pl_module.device)}
        totals = {"images": self.images, "rows": rows, "seconds": seconds, "stages": stages} | peak
        return totals | _rates(totals)

    def _note(self, trainer: pl.Trainer, pl_module: DiffGuardModule, totals: dict[str, Any], prefix: str) -> None:
        update_session(pl_module.run_folder, throughput=totals)
        numbers = {prefix + name: value for name, value in totals.items() if name != "stages"}
        numbers |= {f"{prefix}seconds_{name}": value for name, value in totals["stages"].items()}
        self.noted += 1
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=self.noted)


def _rates(totals: dict[str, Any]) -> dict[str, float]:
    seconds = max(totals["seconds"], 1e-9)
    return {"images_per_second": totals["images"] / seconds, "rows_per_second": totals["rows"] / seconds}


def _peak_memory(device: torch.device) -> int:
    """Of the device; on the CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
