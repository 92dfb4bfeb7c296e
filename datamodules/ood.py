"""One in-distribution set against any number of out-of-distribution sets, from wherever they come."""

from hashlib import sha256
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from diffguard_pl.errors import InputError, choose
from diffguard_pl.scores import IND

from .base import batches, spread
from .reading import Prepared, collate, standard_transform
from .sources import ImageFiles


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
    ):
        super().__init__()
        choose("data.on_error", on_error, ["record", "raise"])
        if len(ind) != 1:
            raise InputError(f"data.ind: expected one in-distribution set, by its name; there are {len(ind)}")
        if resize is not None and resize < image_size:
            raise InputError(f"data.resize={resize} is less than image_size={image_size}, which is cropped from it")
        (self.ind_name,) = ind
        self.sources = dict(ind)
        self.groups: dict[str, str] = {}
        for group, sets in ood.items():
            if group == IND:
                raise InputError(f"data.ood: a group cannot be called {IND!r}, which is that of the in-distribution set")
            for name, source in sets.items():
                if name in self.sources:
                    raise InputError(f"data.ood: there are two data sets with the name {name!r}")
                self.sources[name], self.groups[name] = source, group
        if limit is not None and limit < 1:
            raise InputError(f"data.limit={limit}: expected at least 1 image of each set, or null for all")
        if batch_size < 1 or num_workers < 0:
            raise InputError(f"data.batch_size={batch_size}, num_workers={num_workers}: expected at least 1 and 0")
        only = [only] if isinstance(only, str) else only
        for name, source in [*ind.items(), *(entry for sets in ood.values() for entry in sets.items())]:
            if not hasattr(source, "__len__"):
                raise InputError(
                    f"data set {name}: {type(source).__name__} does not say how many images it has; one with a length is needed"
                )
        for name in only or []:
            choose("data.only", name, list(self.groups))
        self.sources = {name: s for name, s in self.sources.items() if not only or name in only or name == self.ind_name}
        self.groups = {name: group for name, group in self.groups.items() if name in self.sources}
        if not self.groups:
            raise InputError("data.ood: expected at least one out-of-distribution set")
        self.transform = standard_transform(resize or image_size, image_size, interpolation)
        self.batch_size, self.num_workers, self.limit, self.on_error = batch_size, num_workers, limit, on_error
        self.done: dict[str, set[int]] = {}
        """Indices, by data set, of images that a run that is resumed has scored before."""
        self.shard = (0, 1)
        """Which part of each set this run computes, and of how many."""

    def contents(self) -> dict[str, dict[str, Any]]:
        """Of each set how many images it has and, where it is a list of files, the SHA-256 of their paths and classes."""
        found: dict[str, dict[str, Any]] = {}
        for name, source in self.sources.items():
            found[name] = {"images": len(source)}  # type: ignore[arg-type]
            if isinstance(source, ImageFiles):
                lines = "\n".join(f"{entry.path} {entry.label}" for entry in source.entries)
                found[name]["sha256"] = sha256(lines.encode(errors="surrogateescape")).hexdigest()
        return found

    def datasets(self) -> dict[str, Dataset]:
        """What is run, by name; items are dicts with ``image`` (or ``error``), ``label``, ``index`` and ``path``."""
        return {
            name: spread(Prepared(source, self.transform, name, name == self.ind_name), self.limit)
            for name, source in self.sources.items()
        }

    def test_dataloader(self) -> dict[str, DataLoader]:
        return {
            name: DataLoader(
                data,
                batch_sampler=batches(data, self.batch_size, self.trainer, self.done.get(name, ()), self.shard),
                num_workers=self.num_workers,
                collate_fn=collate,
                pin_memory=torch.cuda.is_available(),
            )
            for name, data in self.datasets().items()
        }

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.on_error == "raise" and batch["broken"]:
            broken = batch["broken"][0]
            said = f"{list(self.sources)[dataloader_idx]} image {broken['index']} {broken['path']}: {broken['error']}"
            return batch | {"refused": said}  # whoever computes ends the run, when the images before it have their scores
        return batch
