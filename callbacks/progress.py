"""Progress of a test."""

import math
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class RunProgress(ProgressBar):
    """One rich bar over the images of all data sets, with images/s and time left; plain lines where the output is no terminal.

    Args:
        every: seconds between two plain lines.
    """

    def __init__(self, every: float = 60.0) -> None:
        super().__init__()
        self.every = every
        self.bar: Progress | None = None
        self.enabled = True
        self.counting = False

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loaders = trainer.test_dataloaders
        if not (self.enabled and trainer.is_global_zero and isinstance(loaders, Mapping)):
            return
        self.counting = True
        sizes = [
            _size(loader, batches)
            for loader, batches in zip(loaders.values(), trainer.num_test_batches, strict=True)
        ]
        self.total = None if None in sizes else sum(size or 0 for size in sizes)
        self.images, self.began = 0, time.monotonic()
        self.told, self.dataset = self.began, ""
        checks: Any = getattr(pl_module, "between_steps", [])
        checks.append(self._tick)
        self.ranks = f" on each of {trainer.world_size} devices" if trainer.world_size > 1 else ""
        console = Console()
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self.bar = Progress(*columns, expand=True, console=console)
            self.task = self.bar.add_task("", total=self.total, rate="")
            self.bar.start()

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.counting:
            self.dataset = pl_module.datasets[dataloader_idx]
        if self.bar:
            self.bar.update(self.task, description=escape(self.dataset), refresh=True)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for finished in outputs["finished"] if self.counting else ():
            self.images += len(finished.batch["image"]) + len(finished.batch["unreadable"])
            self.dataset = finished.dataset
            if self.bar:
                self.bar.update(self.task, completed=self.images, rate=self._rate(), refresh=True)
            self._tick()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.counting and not self.bar:
            self._tell("")
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _tick(self) -> None:
        """A line if it is time, in the middle of a batch, too: it may take minutes."""
        if not self.bar and time.monotonic() - self.told >= self.every:
            self._tell(f"{self.dataset}: ")

    def _tell(self, before: str) -> None:
        if self.total == 0:
            print("nothing is left to compute", flush=True)
            return
        of = f"/{self.total}" if self.total is not None else ""
        print(f"{before}{self.images}{of} images, {self._rate()}", flush=True)
        self.told = time.monotonic()

    def _rate(self) -> str:
        rate = self.images / max(time.monotonic() - self.began, 1e-9)
        left = (
            f", {_clock((self.total - self.images) / rate)} left"
            if self.total is not None and rate
            else ""
        )
        return f"{rate:.1f} images/s{self.ranks}{left}"

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def _size(loader: Any, batches: float) -> int | None:
    """Images that ``batches`` batches of a loader hold; None where it does not say."""
    lists = getattr(loader, "batch_sampler", None)
    if isinstance(lists, list):  # those of this package's data modules
        return sum(
            len(batch) for batch in (lists[: int(batches)] if math.isfinite(batches) else lists)
        )
    try:
        size = len(loader.dataset)
    except (TypeError, AttributeError):
        return None
    return min(size, int(batches) * (loader.batch_size or 1)) if math.isfinite(batches) else size


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
