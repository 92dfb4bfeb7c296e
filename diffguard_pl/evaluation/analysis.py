"""Base class of the analyses: modules for ``Trainer.test`` that measure something else than OOD."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from torchmetrics import SumMetric

from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..dtypes import allow_tf32
from ..errors import InputError
from .batches import BatchReader
from .transfer import Finished


class AnalysisModule(pl.LightningModule):
    """Reads the images of some datasets, and hands each batch to :meth:`measure`.

    Args:
        diffguard: Method whose parts are analysed.
        data: Data module.
        datasets: Names of the datasets to read.
        tf32: See :class:`~diffguard_pl.DiffGuardModule`.

    Attributes:
        count: Number of images that were read, of all ranks; known after the test.
        left_out: Number of images that could not be read, of all ranks; known after the test.
    """

    def __init__(
        self, diffguard: DiffGuard, data: OODData, datasets: Sequence[str], tf32: bool = True
    ):
        super().__init__()
        if not diffguard.sampling.reconstructs:
            raise InputError(
                "model.compare_to=none: an analysis looks at reconstructions; set it to input"
            )
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images than devices
        self.diffguard, self.data, self.tf32 = diffguard, data, tf32
        self.datasets = list(datasets)  # of the test loaders; the progress line names them, too
        self.usable, self.unreadable = SumMetric(), SumMetric()
        self.count = self.left_out = 0

    @abstractmethod
    def measure(self, batch: dict[str, Any], dataset: str) -> None:
        """Measure a batch.

        Args:
            batch: ``image`` [N, 3, H, W] in [0, 1], at least one; ``label``, ``index``, ``path``.
            dataset: Name of its dataset.
        """

    @abstractmethod
    def summarise(self) -> None:
        """Compute the result of the batches of all ranks."""

    def test_dataloader(self) -> dict[str, Any]:
        self.data.trainer = self.trainer  # it distributes the images over the ranks
        loaders = self.data.test_dataloader()
        return {name: loaders[name] for name in self.datasets}

    def on_test_start(self) -> None:
        self.reader = BatchReader(
            self.datasets, self.data.done, self.global_rank, self.trainer.world_size
        )

    def test_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[Finished]]:
        dataset = self.datasets[dataloader_idx]
        batch = self.reader.read(batch, dataset)
        self.usable.update(len(batch["image"]))
        self.unreadable.update(len(batch["unreadable"]))
        if len(batch["image"]):
            with allow_tf32(self.tf32):
                self.measure(batch, dataset)
        return {"finished": [Finished(dataset, batch, None)]}

    def on_test_epoch_end(self) -> None:
        self.count, self.left_out = int(self.usable.compute()), int(self.unreadable.compute())
        self.summarise()
