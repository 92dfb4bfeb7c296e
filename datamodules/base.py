"""The contract of data modules, and what all of them share.

These are limits, batches, shards, and the loaders of calibration and training images.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from diffguard_pl.errors import InputError
from diffguard_pl.names import CALIBRATION, CSID

from .reading import ImagePreparation, collate
from .sources import ImageFiles
from .workers import leave_signals_to_parent


class OODData(LightningDataModule, ABC):
    """Data of a test: loaders by dataset name, the in-distribution one first, and their properties.

    A subclass implements :meth:`test_sources` and, where it has such images,
    :meth:`calibration_source` and :meth:`train_source`. :meth:`prepared` turns a source into a
    dataset of dicts with ``image`` [3, H, W] in [0, 1] (or ``error``, why the image is missing),
    ``label`` (-1 for out-of-distribution), ``index`` and ``path``.

    Args:
        batch_size: Number of images per batch.
        num_workers: Number of processes that load images.
        limit: Maximum number of images of each dataset, evenly spaced. Defaults to all.
        train_limit: Maximum number of training images, evenly spaced. Defaults to all.

    Attributes:
        groups: Group of each dataset but the first, such as near and far. Those of the group
            ``csid`` are covariate-shifted in-distribution datasets, with labels, which count as
            in-distribution in full-spectrum results.
        class_names: Names of the labels, where known.
        preparation: How images are prepared (resize, crop, interpolation, orientation). A
            calibrated detector keeps it.
        done: Indices, by dataset, of images that a resumed run has scored before; loaders leave
            them out.
        shard: Which part of each dataset this run computes, and out of how many.
        calibrates: Whether the test loaders include one of the calibration images.
        only_calibration: Whether that one is the only test loader.

    Raises:
        InputError: A limit, the batch size or the number of workers is out of range.
    """

    def __init__(
        self,
        batch_size: int = 32,
        num_workers: int = 0,
        limit: int | None = None,
        train_limit: int | None = None,
    ):
        super().__init__()
        for name, value in {"limit": limit, "train_limit": train_limit}.items():
            if value is not None and value < 1:
                raise InputError(
                    f"data.{name}={value}: must be at least 1 image of each dataset; null for all"
                )
        if batch_size < 1 or num_workers < 0:
            raise InputError(
                f"data.batch_size={batch_size}, num_workers={num_workers}: must be at least 1 and 0"
            )
        self.batch_size, self.num_workers = batch_size, num_workers
        self.limit, self.train_limit = limit, train_limit
        self.groups: dict[str, str] = {}
        self.class_names: list[str] | None = None
        self.preparation: ImagePreparation | None = None
        self.done: dict[str, set[int]] = {}
        self.shard = (0, 1)
        self.calibrates = self.only_calibration = False

    @staticmethod
    def wrap(given: LightningDataModule | None) -> "OODData":
        """Return a data module that fulfils the contract: the given one, or an adapter around it.

        Args:
            given: Any data module; None where the trainer was given plain loaders.
        """
        return given if isinstance(given, OODData) else _Adapter(given)

    # What a subclass provides

    @abstractmethod
    def test_sources(self) -> dict[str, Dataset]:
        """Return the images to test on by dataset name, the in-distribution ones first."""

    def calibration_source(self) -> Dataset | None:
        """Return in-distribution validation images for combinations and thresholds, if any."""
        return None

    def train_source(self) -> Dataset | None:
        """Return in-distribution training images with labels for fitted baselines, if any."""
        return None

    def prepared(self, source: Dataset, name: str, in_distribution: bool) -> Dataset:
        """Return a source as a dataset of dicts. Defaults to the source itself.

        Args:
            source: One of the sources above.
            name: Its dataset name; ``calibration`` and ``train`` for those sources.
            in_distribution: Whether its labels are classes; all others are hidden as -1.
        """
        return source

    def contents(self) -> dict[str, dict[str, Any]]:
        """Return what identifies the images of each dataset. Defaults to nothing.

        A run is only resumed with the same contents.
        """
        return {}

    def train_contents(self) -> dict[str, Any] | None:
        """Return what identifies the training images; None if their features must not be cached."""
        return None

    def has_classes(self, name: str) -> bool:
        """Return whether the labels of a dataset are classes: it is in-distribution."""
        return self.groups.get(name, CSID) == CSID

    def folder_names(self) -> list[str]:
        """Return the names of class folders, where images come from such folders."""
        return []

    # What all have in common

    def use_shard(self, shard: tuple[int, int]) -> None:
        """Compute one part of each dataset: every n-th image from the i-th on.

        Args:
            shard: The pair (i, n).
        """
        self.shard = shard

    def include_calibration(self, alone: bool = False) -> None:
        """Add a test loader of the calibration images.

        Args:
            alone: Leave out all other test loaders.
        """
        self.calibrates, self.only_calibration = True, alone

    def sources(self) -> dict[str, Dataset]:
        """Return the sources of this run's test loaders by dataset name.

        Raises:
            InputError: Calibration images are needed and not set, or some of them are test images.
        """
        if self.only_calibration:
            return {CALIBRATION: self._calibration()}
        tested = self.test_sources()
        calibration = self.calibration_source() if self.calibrates else None
        if calibration is None:
            return tested
        (ind, source), *ood = tested.items()
        _check_disjoint(
            "data.calibration", calibration, f"the in-distribution dataset {ind}", source
        )
        # calibration images come second: the cascade needs their classifier scores early
        return {ind: source, CALIBRATION: calibration, **dict(ood)}

    def datasets(self) -> dict[str, Dataset]:
        """Return the datasets of this run by name; see the class for their items."""
        return {
            name: spread(self.prepared(source, name, self.has_classes(name)), self.limit)
            for name, source in self.sources().items()
        }

    def test_dataloader(self) -> dict[str, DataLoader]:
        """Return this rank's test loaders by dataset name, the in-distribution one first."""
        return {
            name: DataLoader(
                data,
                batch_sampler=batches(
                    data, self.batch_size, self.trainer, self.done.get(name, ()), self.shard
                ),
                collate_fn=collate,
                num_workers=self.num_workers,
                worker_init_fn=leave_signals_to_parent,
                pin_memory=torch.cuda.is_available(),
            )
            for name, data in self.datasets().items()
        }

    def calibration_dataloader(self) -> Any:
        """Return a loader of all calibration images, the same on every rank."""
        return self._in_order(self._calibration(), CALIBRATION, self.limit)

    def train_dataloader(self, limit: int | None = None) -> Any:
        """Return a loader of the training images, the same on every rank; None without any.

        Args:
            limit: Maximum number of images, evenly spaced. Defaults to ``train_limit``.

        Raises:
            InputError: Some of them are in-distribution test images, or calibration images that
                this run uses.
        """
        source = self.train_source()
        if source is None:
            return None
        if isinstance(source, ImageFiles):
            self._check_training_files(source)
        limits = [number for number in (limit, self.train_limit) if number is not None]
        return self._in_order(source, "train", min(limits, default=None))

    def _check_training_files(self, source: ImageFiles) -> None:
        ind_name, ind = next(iter(self.test_sources().items()))
        _check_disjoint("data.train", source, f"the dataset {ind_name}", ind)
        calibration = self.calibration_source() if self.calibrates else None
        if calibration is not None:
            _check_disjoint("data.train", source, f"the dataset {CALIBRATION}", calibration)

    def _calibration(self) -> Dataset:
        source = self.calibration_source()
        if source is None:
            raise InputError(
                "data.calibration: not set; it is the source of in-distribution validation images"
            )
        return source

    def _in_order(self, source: Dataset, name: str, limit: int | None) -> DataLoader:
        data = spread(self.prepared(source, name, in_distribution=True), limit)
        return DataLoader(
            data,
            self.batch_size,
            collate_fn=collate,
            num_workers=self.num_workers,
            worker_init_fn=leave_signals_to_parent,
        )


class _Adapter(OODData):
    """The contract for any other data module, or for loaders without one.

    Loaders are the data module's own. It can be tested on and trained on, but not sharded,
    calibrated or checked.

    Args:
        given: The data module; None for plain loaders.
    """

    def __init__(self, given: LightningDataModule | None):
        super().__init__()
        self.given = given
        # names are optional for a foreign data module; this is the only place that looks for them
        groups = getattr(given, "groups", {})
        self.groups = {str(name): str(group) for name, group in groups.items()}
        self.class_names = getattr(given, "class_names", None)

    def test_sources(self) -> dict[str, Dataset]:
        raise self._unsupported("data", "list its images")

    def use_shard(self, shard: tuple[int, int]) -> None:
        raise self._unsupported("shard", "compute a part of its images")

    def include_calibration(self, alone: bool = False) -> None:
        # its own test loaders may have one with the name "calibration"
        if alone:
            raise self._unsupported(
                "data", "provide calibration images; or calibrate a Detector with any loader"
            )

    def calibration_dataloader(self) -> Any:
        raise self._unsupported("cascade.skip", "provide calibration images; or set skip to false")

    def train_dataloader(self, limit: int | None = None) -> Any:
        # A foreign loader is taken as a whole, whatever the limit.
        if self.given is None or not is_overridden("train_dataloader", self.given):
            return None
        return self.given.train_dataloader()

    def _unsupported(self, setting: str, what: str) -> InputError:
        name = "a run on plain loaders" if self.given is None else type(self.given).__name__
        return InputError(f"{setting}: {name} is not an OODData, which is needed to {what}")


@dataclass
class ImageSet(Dataset):
    """Images in memory, with the items of :class:`OODData`.

    Attributes:
        images: [N, 3, H, W] in [0, 1].
        labels: Class of each image, -1 for out-of-distribution.
        paths: Where each image comes from, for tables and pictures.
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
    """Return at most ``limit`` images, evenly spaced; an image keeps its index."""
    size = len(data)  # type: ignore[arg-type]
    if limit is None or limit >= size:
        return data
    return Subset(data, [i * size // limit for i in range(limit)])


def digest(images: Tensor) -> str:
    """Return the SHA-256 of images."""
    return sha256(images.contiguous().numpy().tobytes()).hexdigest()


def fingerprint(image: Tensor) -> str:
    """Return 64 bits of a hash of an image in [0, 1], rounded to 8 bits, in hexadecimal."""
    pixels = image.float().mul(255).round().to(torch.uint8)
    return blake2b(pixels.numpy().tobytes(), digest_size=8).hexdigest()


def contents_of(source: Dataset) -> dict[str, Any]:
    """Return the number of images and, for files, the SHA-256 of their paths and classes."""
    contents: dict[str, Any] = {"images": len(source)}  # type: ignore[arg-type]
    if isinstance(source, ImageFiles):
        lines = "\n".join(f"{entry.path} {entry.label}" for entry in source.entries)
        contents["sha256"] = sha256(lines.encode(errors="surrogateescape")).hexdigest()
    return contents


def batches(
    data: Dataset,
    size: int,
    trainer: Any,
    done: Collection[int] = (),
    shard: tuple[int, int] = (0, 1),
) -> list[list[int]]:
    """Return this rank's batches, as places in ``data``; every image is on exactly one rank.

    Lightning's own sampler repeats images to give every rank as many. A rank without images gets
    one empty batch: Lightning calls no hook on a rank without batches, and the others would wait
    for it.

    Args:
        data: Dataset, or a subset as of :func:`spread`.
        size: Number of images per batch.
        trainer: Trainer that knows rank and number of ranks. None for one rank.
        done: Indices of images to leave out.
        shard: Which part of the images, and out of how many.
    """
    indices: Sequence[int] = data.indices if isinstance(data, Subset) else range(len(data))  # type: ignore[arg-type]
    # every n-th image: neighbours cost alike, so that shards and ranks end at the same time
    of_shard = range(len(indices))[shard[0] :: shard[1]]
    pending = [place for place in of_shard if indices[place] not in done]
    if trainer is not None:
        pending = pending[trainer.global_rank :: trainer.world_size]
    return [pending[i : i + size] for i in range(0, len(pending), size)] or [[]]


def _check_disjoint(setting: str, source: Dataset, other_name: str, other: Dataset) -> None:
    """Raise an `InputError` if two lists of files share images."""
    if not (isinstance(source, ImageFiles) and isinstance(other, ImageFiles)):
        return
    shared = sorted(source.files() & other.files())
    if shared:
        raise InputError(
            f"{setting}: shares {len(shared)} images with {other_name}, such as {shared[0]}; "
            "metrics would be optimistically biased"
        )
