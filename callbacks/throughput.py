"""Throughput of a run, and the stages that take its time."""

import sys
import time
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch

from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.evaluation.ranks import gather
from diffguard_pl.runs.record import update_session

STAGES = ("classify", "diffuse", "compare")


class ThroughputMonitor(pl.Callback):
    """Records throughput in ``run.json`` and with the loggers.

    This comprises images per second, NFE per second, how full the diffusion model's batches were,
    peak memory, and seconds per stage. The stage ``waiting`` is the rest: loading and writing.
    Seconds per stage are those of the first rank; all else covers all ranks.

    Args:
        every: Seconds between two records.
    """

    def __init__(self, every: float = 30.0):
        if every <= 0:
            raise InputError(f"throughput.every={every}: must be more than 0 seconds")
        self.every = every

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        # scores have been fitted before: what that took is no cost of an image
        self.began = self.last_record = time.monotonic()
        self.images, self.records, self.nfe_before = 0, 0, pl_module.diffguard.nfe
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any
    ) -> None:
        self.images += sum(len(finished.batch["image"]) for finished in outputs["finished"])
        pl_module.stream.stopwatch.seconds()  # reads CUDA events, which would accumulate
        if time.monotonic() - self.last_record >= self.every and trainer.is_global_zero:
            self._record(trainer, pl_module, self.totals(pl_module), "throughput/rank0/")
            self.last_record = time.monotonic()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        totals = self.totals(pl_module)
        pl_module.wait_for_others()
        if trainer.world_size > 1:
            gathered = gather(totals, trainer.world_size)
            for name in ("images", "nfe", "useful_nfe", "batch_nfe"):
                totals[name] = sum(of_rank[name] for of_rank in gathered)
            totals["seconds"] = max(of_rank["seconds"] for of_rank in gathered)
            peaks = [of_rank["peak_memory_bytes"] for of_rank in gathered]
            totals["peak_memory_bytes"] = None if None in peaks else max(peaks)
            totals |= _rates(totals)
        if trainer.is_global_zero:
            self._record(trainer, pl_module, totals, "throughput/")

    def totals(self, pl_module: DiffGuardModule) -> dict[str, Any]:
        """Return the counts, seconds and rates of this rank so far."""
        engine, spent = pl_module.stream.engine, pl_module.stream.stopwatch.seconds()
        seconds = time.monotonic() - self.began
        stages = {name: spent.get(name, 0.0) for name in STAGES}
        stages["waiting"] = max(0.0, seconds - sum(stages.values()))
        totals = {
            "images": self.images,
            "nfe": pl_module.diffguard.nfe - self.nfe_before,
            "useful_nfe": engine.nfe,
            "batch_nfe": engine.passes * engine.slots,
            "seconds": seconds,
            "stages": stages,
            "peak_memory_bytes": _peak_memory(pl_module.device),
        }
        return totals | _rates(totals)

    def _record(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, totals: dict[str, Any], prefix: str
    ) -> None:
        update_session(pl_module.run_folder, throughput=totals)
        numbers = {
            prefix + name: value
            for name, value in totals.items()
            if name != "stages" and value is not None
        }
        numbers |= {f"{prefix}seconds_{name}": value for name, value in totals["stages"].items()}
        self.records += 1
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=self.records)


def _rates(totals: dict[str, Any]) -> dict[str, float]:
    seconds = max(totals["seconds"], 1e-9)
    return {
        "images_per_second": totals["images"] / seconds,
        "nfe_per_second": totals["nfe"] / seconds,
        "utilisation": totals["useful_nfe"] / max(1, totals["batch_nfe"]),
    }


def _peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes of a GPU, or of this process on the CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(ImportError):
        import resource

        # macOS counts bytes, Linux kilobytes
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # Windows
    with suppress(ImportError):
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    return None
