"""One in-distribution set against any number of out-of-distribution sets, from wherever they come."""

from hashlib import sha256
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from diffguard_pl.errors import InputError, choose
from diffguard_pl.names import CALIBRATION, IND

from .base import batches, spread
from .reading import Prepared, collate, standard_transform
from .sources import ClassFolders, ImageFiles


class OODDataModule(LightningDataModule):
    """Test loaders by name, the in-distribution set first, then the others in the order of their groups.

    A source of images is any torch data set: ``ImageList``, ``ImageDirectory``, ``ClassFolders`` and ``HuggingFaceImages`` of this
    package, one of torchvision's, or your own, by its class path. Items are (image, label) pairs, dicts, or images alone; images
    are PIL or tensors [3, H, W] in [0, 1].

    Args:
        ind: name and source of the in-distribution set.
        ood: for each group (``near``, ``far``, or names of your own) the names and sources of its sets.
        image_size: side of the images that the detector is given: the ``input_size`` of its backbone.
        resize: length of the short side before ``image_size`` is cropped from the centre; none: ``image_size``.
        interpolation: of the resize, ``bilinear`` or ``bicubic``.
        batch_size: images a batch.
        num_workers: processes that read images.
        limit: at most so many images of each set, spread evenly over it; none: all.
        only: names of the out-of-distribution sets to run; none: all.
        on_error: what an image that cannot be read means: ``record`` its reason and go on without it, or ``raise``.
        fit: source of in-distribution training images with labels, for baselines that are fitted.
        fit_limit: at most so many of them, spread evenly; none: all.
        calibration: source of in-distribution validation images, for fusion, cascade and thresholds: none of those of ``ind``.
    """

    def __init__(
        self,
        ind: dict[str, Dataset],
        ood: dict[str, dict[str, Dataset]],
        image_size: int = 224,
        resize: int | None = 256,
        interpolation: str = "bilinear",
        batch_size: int = 32,
        num_workers: int = 4,
        limit: int | None = None,
        only: list[str] | str | None = None,
        on_error: str = "record",
        fit: Dataset | None = None,
        fit_limit: int | None = None,
        calibration: Dataset | None = None,
    ):
        super().__init__()
        choose("data.on_error", on_error, ["record", "raise"])
        if len(ind) != 1:
            raise InputError(
                f"data.ind: expected one in-distribution set, by its name; there are {len(ind)}"
            )
        if resize is not None and resize < image_size:
            raise InputError(
                f"data.resize={resize} is less than image_size={image_size}, which is cropped from it"
            )
        (self.ind_name,) = ind
        self.sources = dict(ind)
        self.groups: dict[str, str] = {}
        for group, sets in ood.items():
            if group in (IND, CALIBRATION):
                raise InputError(
                    f"data.ood: a group cannot be called {group!r}, which is that of in-distribution images"
                )
            for name, source in sets.items():
                if name in self.sources:
                    raise InputError(f"data.ood: there are two data sets with the name {name!r}")
                self.sources[name], self.groups[name] = source, group
        if CALIBRATION in self.sources:
            raise InputError(
                f"data: a set cannot be called {CALIBRATION!r}; validation images are given as data.calibration"
            )
        for name, value in {"limit": limit, "fit_limit": fit_limit}.items():
            if value is not None and value < 1:
                raise InputError(
                    f"data.{name}={value}: expected at least 1 image of each set, or null for all"
                )
        if batch_size < 1 or num_workers < 0:
            raise InputError(
                f"data.batch_size={batch_size}, num_workers={num_workers}: expected at least 1 and 0"
            )
        only = [only] if isinstance(only, str) else only
        more = {
            name: source
            for name, source in (("fit", fit), (CALIBRATION, calibration))
            if source is not None
        }
        for name, source in [
            *ind.items(),
            *(entry for sets in ood.values() for entry in sets.items()),
            *more.items(),
        ]:
            if not hasattr(source, "__len__"):
                raise InputError(
                    f"data set {name}: {type(source).__name__} does not say how many images it has; one with a length is needed"
                )
        for name in only or []:
            choose("data.only", name, list(self.groups))
        self.sources = {
            name: s
            for name, s in self.sources.items()
            if not only or name in only or name == self.ind_name
        }
        self.groups = {name: group for name, group in self.groups.items() if name in self.sources}
        if not self.groups:
            raise InputError("data.ood: expected at least one out-of-distribution set")
        self.transform = standard_transform(resize or image_size, image_size, interpolation)
        self.batch_size, self.num_workers, self.limit, self.on_error = (
            batch_size,
            num_workers,
            limit,
            on_error,
        )
        self.done: dict[str, set[int]] = {}
        """Indices, by data set, of images that a run that is resumed has scored before."""
        self.shard = (0, 1)
        """Which part of each set this run computes, and of how many."""
        self.fit, self.fit_limit, self.calibration = fit, fit_limit, calibration
        self.calibrates = self.only_calibration = False
        """Whether there is a loader of the calibration images, too, and whether there is no other."""
        self.preparation = {
            "image_size": image_size,
            "resize": resize or image_size,
            "interpolation": interpolation,
        }
        self.preparation["upright"] = bool(getattr(calibration, "upright", False))
        """How images are prepared; a detector that is calibrated on them keeps it."""

    def _sources(self) -> dict[str, Dataset]:
        """What is run."""
        if not self.calibrates or (self.calibration is None and not self.only_calibration):
            return self.sources
        calibration = self._calibration()
        if self.only_calibration:
            return {CALIBRATION: calibration}
        (ind, *ood) = self.sources.items()
        _check_apart(
            calibration,
            ind[1],
            "data.calibration",
            f"the in-distribution set {ind[0]}",
            "calibrated on would flatter",
        )
        return dict([ind, (CALIBRATION, calibration), *ood])

    def _calibration(self) -> Dataset:
        if self.calibration is None:
            raise InputError(
                "data.calibration: not set; it is the source of in-distribution validation images"
            )
        return self.calibration

    def contents(self) -> dict[str, dict[str, Any]]:
        """Of each set how many images it has and, where it is a list of files, the SHA-256 of their paths and classes."""
        return {name: _contents(source) for name, source in self._sources().items()}

    def folder_names(self) -> list[str]:
        """Of the classes, where a source of in-distribution images is a folder for each."""
        for source in (self.sources[self.ind_name], self.fit):
            if isinstance(source, ClassFolders):
                try:
                    return source.names
                except InputError:  # of a source that is not needed, perhaps
                    continue
        return []

    def fit_contents(self) -> dict[str, Any] | None:
        """What the training images are; None where they are no list of files, and may be anything."""
        if not isinstance(self.fit, ImageFiles):
            return None
        prepared = self.preparation | {"upright": bool(getattr(self.fit, "upright", False))}
        return (
            _contents(self.fit) | {"root": str(self.fit.root), "limit": self.fit_limit} | prepared
        )

    def fit_dataloader(self) -> DataLoader | None:
        """Training images, for baselines that are fitted."""
        if self.fit is None:
            return None
        others = {self.ind_name: self.sources[self.ind_name]} | (
            {CALIBRATION: self.calibration} if self.calibrates else {}
        )
        for name, source in others.items():
            _check_apart(self.fit, source, "data.fit", f"the set {name}", "fitted to would flatter")
        return self._in_order(self.fit, "fit", self.fit_limit)

    def calibration_dataloader(self) -> DataLoader:
        """In-distribution validation images."""
        return self._in_order(self._calibration(), CALIBRATION, self.limit)

    def _in_order(self, source: Dataset, name: str, limit: int | None) -> DataLoader:
        data = spread(Prepared(source, self.transform, name, True), limit)
        return DataLoader(data, self.batch_size, num_workers=self.num_workers, collate_fn=collate)

    def datasets(self) -> dict[str, Dataset]:
        """What is run, by name; items are dicts with ``image`` (or ``error``), ``label``, ``index`` and ``path``."""
        return {
            name: spread(
                Prepared(source, self.transform, name, name in (self.ind_name, CALIBRATION)),
                self.limit,
            )
            for name, source in self._sources().items()
        }

    def test_dataloader(self) -> dict[str, DataLoader]:
        return {
            name: DataLoader(
                data,
                batch_sampler=batches(
                    data, self.batch_size, self.trainer, self.done.get(name, ()), self.shard
                ),
                num_workers=self.num_workers,
                collate_fn=collate,
                pin_memory=torch.cuda.is_available(),
            )
            for name, data in self.datasets().items()
        }

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.on_error == "raise" and batch["broken"]:
            broken = batch["broken"][0]
            said = f"{list(self._sources())[dataloader_idx]} image {broken['index']} {broken['path']}: {broken['error']}"
            return batch | {
                "refused": said
            }  # whoever computes ends the run, when the images before it have their scores
        return batch


def _check_apart(source: Dataset, other: Dataset | None, name: str, whose: str, why: str) -> None:
    """Raise an `InputError` where two lists of files have some in common."""
    if (
        isinstance(source, ImageFiles)
        and isinstance(other, ImageFiles)
        and (shared := sorted(source.files() & other.files()))
    ):
        raise InputError(
            f"{name}: has {len(shared)} images of {whose}, such as {shared[0]}; figures on images that were {why}"
        )


def _contents(source: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {"images": len(source)}  # type: ignore[arg-type]
    if isinstance(source, ImageFiles):
        lines = "\n".join(f"{entry.path} {entry.label}" for entry in source.entries)
        found["sha256"] = sha256(lines.encode(errors="surrogateescape")).hexdigest()
    return found
