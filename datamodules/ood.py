"""One in-distribution dataset against any number of out-of-distribution datasets."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch.utils.data import Dataset

from diffguard_pl.errors import InputError, checked_name, choose
from diffguard_pl.names import CALIBRATION, CSID, FULL_SPECTRUM, IND

from .base import OODData, contents_of
from .reading import ImagePreparation, Prepared
from .sources import ClassFolders, ImageFiles


class OODDataModule(OODData):
    """Data from any sources: one in-distribution dataset, then the others, group by group.

    Covariate-shifted in-distribution datasets show the same classes under other conditions. With
    any, the result table has every result twice: against ``ind`` alone, and with these images
    counted as in-distribution, too (full-spectrum OOD detection, Yang et al. 2023).

    A source of images is any torch dataset: ``ImageList``, ``ImageDirectory``, ``ClassFolders`` and
        ``HuggingFaceImages`` of
    this package, one of torchvision's, or a custom one by its class path. Items are (image, label)
    pairs, dicts, or images alone; images are PIL or tensors [3, H, W] in [0, 1].

    Args:
        ind: Name and source of the in-distribution dataset.
        ood: Names and sources of the out-of-distribution datasets, by group (``near``, ``far``, or
            any other name).
        image_size: Side of the images that DiffGuard gets: the ``input_size`` of its backbone.
        resize: Length of the short side, from whose centre ``image_size`` is cropped. Null:
            ``image_size``.
        interpolation: Interpolation of the resize, ``bilinear`` or ``bicubic``.
        batch_size: Number of images per batch.
        num_workers: Number of processes that read images.
        limit: Maximum number of images of each dataset, evenly spaced. Defaults to all.
        only: Names of the datasets to run besides the in-distribution one. Defaults to all.
        on_error: What to do about an unreadable image: ``record`` the reason and go on without it,
            or ``raise``.
        train: Source of in-distribution training images with labels, for fitted baselines.
        train_limit: Maximum number of training images, evenly spaced. Defaults to all.
        calibration: Source of in-distribution validation images for fusion, cascade and thresholds,
            none of them in ``ind``.
        shifted: Names and sources of covariate-shifted in-distribution datasets, with the same
            labels as ``ind``.
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
        train: Dataset | None = None,
        train_limit: int | None = None,
        calibration: Dataset | None = None,
        shifted: dict[str, Dataset] | None = None,
    ):
        super().__init__(batch_size, num_workers, limit, train_limit)
        choose("data.on_error", on_error, ["record", "raise"])
        self.on_error = on_error
        if resize is not None and resize < image_size:
            raise InputError(
                f"data.resize={resize}: must be at least image_size={image_size}, "
                "which is cropped from it"
            )
        self.ind_name, self._sources, self.groups = _named_sources(ind, ood, shifted or {})
        self.train, self.calibration = train, calibration
        extra = {"train": train, CALIBRATION: calibration}
        _check_lengths(self._sources | {name: s for name, s in extra.items() if s is not None})
        self._keep([only] if isinstance(only, str) else only)
        # Sources apply EXIF orientation themselves; a detector copies the calibration source's
        # setting.
        upright = _is_upright(calibration)
        preparation = ImagePreparation(image_size, resize or image_size, interpolation, upright)
        self.preparation, self.transform = preparation, preparation.transform

    def _keep(self, only: list[str] | None) -> None:
        """Leave out the datasets that are not to be run."""
        only = [str(name) for name in only or []]
        for name in only:
            choose("data.only", name, list(self.groups))
        if only:
            self.groups = {name: group for name, group in self.groups.items() if name in only}
        if set(self.groups.values()) <= {CSID}:
            raise InputError("data.ood: must have at least one out-of-distribution dataset")
        self._sources = {name: self._sources[name] for name in [self.ind_name, *self.groups]}

    def test_sources(self) -> dict[str, Dataset]:
        return self._sources

    def calibration_source(self) -> Dataset | None:
        return self.calibration

    def train_source(self) -> Dataset | None:
        return self.train

    def prepared(self, source: Dataset, name: str, in_distribution: bool) -> Dataset:
        return Prepared(source, self.transform, name, in_distribution)

    def contents(self) -> dict[str, dict[str, Any]]:
        return {name: contents_of(source) for name, source in self.sources().items()}

    def train_contents(self) -> dict[str, Any] | None:
        # only a list of files can be identified without reading all images
        if not isinstance(self.train, ImageFiles) or self.preparation is None:
            return None
        where = {"root": str(self.train.root), "limit": self.train_limit}
        preparation = asdict(self.preparation) | {"upright": self.train.upright}
        return contents_of(self.train) | where | preparation

    def folder_names(self) -> list[str]:
        for source in (self._sources[self.ind_name], self.train):
            if isinstance(source, ClassFolders):
                try:
                    return source.names
                except InputError:  # its folder is missing, but this run may not need it
                    continue
        return []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.on_error == "raise" and batch["unreadable"]:
            item = batch["unreadable"][0]
            dataset = list(self.sources())[dataloader_idx]
            # the run ends where the batch is used, when all images before it have their scores
            return batch | {
                "error": f"{dataset} image {item['index']} {item['path']}: {item['error']}"
            }
        return batch


def _named_sources(
    ind: Mapping[str, Dataset],
    ood: Mapping[str, Mapping[str, Dataset]],
    shifted: Mapping[str, Dataset],
) -> tuple[str, dict[str, Dataset], dict[str, str]]:
    """Return the name of the in-distribution dataset, all sources, and the groups of the others.

    Raises:
        InputError: A name is reserved, not unique, or no name of a folder.
    """
    if len(ind) != 1:
        raise InputError(
            f"data.ind: must be one in-distribution dataset, by its name; it has {len(ind)}"
        )
    ((given, ind_source),) = ind.items()
    ind_name = checked_name("data.ind: the dataset name", given)
    sources, groups = {ind_name: ind_source}, {}

    def add(setting: str, members: Mapping[str, Dataset], group: str) -> None:
        for given, source in members.items():
            name = checked_name(f"{setting}: the dataset name", given)
            if name in sources:
                raise InputError(f"{setting}: the dataset name {name!r} must be unique")
            sources[name], groups[name] = source, group

    add("data.shifted", shifted, CSID)
    for given, members in ood.items():
        group = checked_name("data.ood: the group name", given)
        if group == CSID:
            raise InputError(
                f"data.ood: the group name {CSID!r} is reserved for covariate-shifted "
                "in-distribution datasets; set data.shifted instead"
            )
        if group in (IND, CALIBRATION) or group.startswith(FULL_SPECTRUM):
            raise InputError(f"data.ood: the group name {group!r} is reserved; choose another")
        add("data.ood", members, group)
    if CALIBRATION in sources:
        raise InputError(
            f"data: the dataset name {CALIBRATION!r} is reserved; set data.calibration instead"
        )
    return ind_name, sources, groups


def _check_lengths(sources: Mapping[str, Dataset]) -> None:
    for name, source in sources.items():
        if not hasattr(source, "__len__"):
            raise InputError(
                f"dataset {name}: {type(source).__name__} has no length; it must define __len__"
            )


def _is_upright(source: Dataset | None) -> bool:
    """Return whether a source turns images as their EXIF orientation says."""
    return bool(getattr(source, "upright", False))
