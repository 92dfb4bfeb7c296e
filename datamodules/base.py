"""What all data sets here have in common."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Subset


@dataclass
class ImageSet(Dataset):
    """Images held in memory, as the batches of :class:`~diffguard_pl.evaluation.module.DiffGuardModule` want them.

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
        return {
            "image": self.images[index],
            "label": self.labels[index],
            "index": index,
            "path": self.paths[index],
        }


def spread(data: Dataset, limit: int | None) -> Dataset:
    """At most ``limit`` images, evenly spaced; an image keeps its index."""
    size = len(data)  # type: ignore[arg-type]
    if limit is None or limit >= size:
        return data
    return Subset(data, [i * size // limit for i in range(limit)])


def digest(images: Tensor) -> str:
    """SHA-256 of images."""
    return sha256(images.contiguous().numpy().tobytes()).hexdigest()


def batches(
    data: Dataset,
    size: int,
    trainer: Any,
    done: Collection[int] = (),
    shard: tuple[int, int] = (0, 1),
) -> list[list[int]]:
    """This rank's images, by their places in ``data``, in batches: every image on exactly one rank, none twice (Lightning's own
    sampler repeats some to pad). Shards and ranks take every n-th image: neighbours cost alike, so that all are done together.

    Args:
        data: what :func:`spread` gives.
        size: images a batch.
        trainer: that knows rank and number of ranks; none: one rank.
        done: indices of images to leave out.
        shard: which part of the images, and of how many.

    A rank without images gets one empty batch: Lightning calls no hook on a rank that has no batches, and the others wait for it.
    """
    indices: Sequence[int] = data.indices if isinstance(data, Subset) else range(len(data))  # type: ignore[arg-type]
    pending = [
        place for place in range(len(indices))[shard[0] :: shard[1]] if indices[place] not in done
    ]
    mine = pending if trainer is None else pending[trainer.global_rank :: trainer.world_size]
    return [mine[i : i + size] for i in range(0, len(mine), size)] or [[]]
