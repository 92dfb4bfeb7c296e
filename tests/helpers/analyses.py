"""Data and a trainer for tests of the analyses."""

import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset

from diffguard_pl.datamodules.base import ImageSet, OODData
from diffguard_pl.evaluation.analysis import AnalysisModule


def random_images(count: int, seed: int, label: int = 0) -> ImageSet:
    """Return random images of 16 px with the labels label, label + 1, ..., all below 8."""
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    labels = [-1 if label < 0 else (label + i) % 8 for i in range(count)]
    return ImageSet(pixels, labels, [f"{i}.png" for i in range(count)])


class SomeImages(OODData):
    """Any images, in-distribution ones first."""

    def __init__(self, batch_size: int = 32, **images: ImageSet):
        super().__init__(batch_size)
        self.images = images
        self.groups = dict.fromkeys(list(images)[1:], "near")

    def test_sources(self) -> dict[str, Dataset]:
        return dict(self.images)


def analysed(module: AnalysisModule) -> None:
    """Run an analysis."""
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    pl.Trainer(accelerator="cpu", use_distributed_sampler=False, **quiet).test(
        module, verbose=False
    )
