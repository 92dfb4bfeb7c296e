"""What all data sets here have in common."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Subset


@dataclass
class ImageSet(Dataset):
    """Images held in memory, as the batches of :class:`~diffguard_pl.module.DiffGuardModule` want them.

    Attributes:
        images: [N, 3, H, W] in [0, 1].
        labels: class of each image, -1 for out-of-distribution.
        paths: where each image comes from, for tables and pictures.
    """

    images: Tensor
    labels: list[int]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index], "index": index, "path": self.paths[index]}


def spread(data: Dataset, limit: int | None) -> Dataset:
    """At most ``limit`` images, evenly spaced; an image keeps its index."""
    size = len(data)  # type: ignore[arg-type]
    if limit is None or limit >= size:
        return data
    return Subset(data, [i * size // limit for i in range(limit)])


def shard(data: Dataset, trainer: Any) -> Dataset:
    """This rank's images: every image on exactly one rank, none twice (Lightning's own sampler repeats some to pad)."""
    if trainer is None or trainer.world_size == 1:
        return data
    return Subset(data, range(trainer.global_rank, len(data), trainer.world_size))  # type: ignore[arg-type]
