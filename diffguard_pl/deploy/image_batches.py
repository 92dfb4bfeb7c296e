"""Batches of image files, read and prepared by worker processes."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch.utils.data import DataLoader, Dataset

from ..datamodules.reading import ImagePreparation, Prepared, collate, read_image
from ..datamodules.workers import leave_signals_to_parent
from ..errors import InputError


class PathDataset(Dataset):
    """Image files by path. A file is read when its item is requested.

    Args:
        paths: Paths of the images, each with the reason why it cannot be read, or None.
        upright: Whether to apply EXIF orientation. Defaults to False.
    """

    def __init__(self, paths: Mapping[str, str | None], upright: bool = False):
        self.paths, self.reasons, self.upright = list(paths), list(paths.values()), upright

    def __len__(self) -> int:
        return len(self.paths)

    def path_of(self, index: int) -> str:
        """Return the path of an image."""
        return self.paths[index]

    def __getitem__(self, index: int) -> Image:
        reason = self.reasons[index]
        if reason:
            raise InputError(reason)
        return read_image(Path(self.paths[index]), self.upright)


def image_batches(
    paths: Mapping[str, str | None], preparation: ImagePreparation, batch_size: int, workers: int
) -> Iterable[dict[str, Any]]:
    """Return the batches of image files, as of :func:`~diffguard_pl.datamodules.reading.collate`.

    Args:
        paths: Paths of the images, each with the reason why it cannot be read, or None.
        preparation: Preparation of the images.
        batch_size: Number of images in a batch.
        workers: Number of processes that read. A single batch is read without them.
    """
    if not paths:
        return []
    files = PathDataset(paths, preparation.upright)
    return DataLoader(
        Prepared(files, preparation.transform, "", in_distribution=False),
        batch_size,
        num_workers=workers if len(paths) > batch_size else 0,
        collate_fn=collate,
        worker_init_fn=leave_signals_to_parent,
    )
