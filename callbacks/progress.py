"""Progress of a test."""

import math
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class RunProgress(ProgressBar):
    """One rich bar over the images of all data sets, with images/s and time left."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: Progress | None = None
        self.enabled = True

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loaders = trainer.test_dataloaders
        if not (self.enabled and trainer.is_global_zero and isinstance(loaders, Mapping)):
            return
        sizes = [_size(loader, batches) for loader, batches in zip(loaders.values(), trainer.num_test_batches, strict=True)]
        images = None if None in sizes else sum(size or 0 for size in sizes)
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self.bar = Progress(*columns, expand=True)
        self.task = self.bar.add_task("", total=images, rate="")
        self.began = time.monotonic()
        self.bar.start()

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.bar:
            self.bar.update(self.task, description=pl_module.datasets[dataloader_idx], refresh=True)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        if not self.bar:
            return
        self.bar.advance(self.task, len(outputs["batch"]["image"]) + len(outputs["batch"]["broken"]))
        task = self.bar.tasks[0]
        rate = task.completed / (time.monotonic() - self.began)
        left = f", {_clock((task.total - task.completed) / rate)} left" if task.total else ""
        self.bar.update(self.task, rate=f"{rate:.1f} images/s{left}", refresh=True)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def _size(loader: Any, batches: float) -> int | None:
    """Images that ``batches`` batches of a loader hold; None where it does not say."""
    try:
        size = len(loader.dataset)
    except (TypeError, AttributeError):
        return None
    return min(size, int(batches) * (loader.batch_size or 1)) if math.isfinite(batches) else size


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
