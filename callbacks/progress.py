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
from torch.utils.data import DataLoader

from diffguard_pl.evaluation.module import DiffGuardModule


class RunProgress(ProgressBar):
    """A bar over the images of all datasets, with images per second and time left.

    Where the output is not a terminal, plain lines replace the bar.

    Args:
        every: Seconds between two plain lines.
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
        limits = trainer.num_test_batches
        sizes = [_size(*pair) for pair in zip(loaders.values(), limits, strict=True)]
        self.total = None if None in sizes else sum(size or 0 for size in sizes)
        self.images, self.dataset = 0, ""
        self.began = self.last_line = time.monotonic()
        devices = trainer.world_size
        self.of_devices = f" on each of {devices} devices" if devices > 1 else ""
        # a batch may take minutes: lines come between its steps, too
        if isinstance(pl_module, DiffGuardModule):
            pl_module.between_steps.append(self._print_if_due)
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
        if not self.counting:
            return
        for finished in outputs["finished"]:
            self.images += len(finished.batch["image"]) + len(finished.batch["unreadable"])
            self.dataset = finished.dataset
            if self.bar:
                self.bar.update(self.task, completed=self.images, rate=self._rate(), refresh=True)
            self._print_if_due()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.counting and not self.bar:
            self._print("")
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._stop()

    def _print_if_due(self) -> None:
        if not self.bar and time.monotonic() - self.last_line >= self.every:
            self._print(f"{self.dataset}: ")

    def _print(self, prefix: str) -> None:
        if self.total == 0:
            print("nothing left to compute", flush=True)
            return
        total = "" if self.total is None else f"/{self.total}"
        print(f"{prefix}{self.images}{total} images, {self._rate()}", flush=True)
        self.last_line = time.monotonic()

    def _rate(self) -> str:
        rate = self.images / max(time.monotonic() - self.began, 1e-9)
        text = f"{rate:.1f} images/s{self.of_devices}"
        if self.total is None or rate == 0:
            return text
        return f"{text}, {_clock((self.total - self.images) / rate)} left"

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


def _size(loader: Any, limit: float) -> int | None:
    """Return the number of images in at most ``limit`` batches of a loader; None if unknown."""
    if not isinstance(loader, DataLoader):
        return None
    # data modules of this package list the images of each batch
    batches = loader.batch_sampler
    if isinstance(batches, list):
        return sum(len(batch) for batch in batches[: None if math.isinf(limit) else int(limit)])
    try:
        size = len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:  # an iterable dataset has no length
        return None
    return size if math.isinf(limit) else min(size, int(limit) * (loader.batch_size or 1))


def _clock(seconds: float) -> str:
    """Return seconds as ``M:SS`` or ``H:MM:SS``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
