"""Batches of any test loader: checked, completed, counted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError, checked_name
from ..names import AVERAGE, CALIBRATION, CSID, FULL_SPECTRUM, MEAN
from ..stages import as_batch

if TYPE_CHECKING:
    import pandas as pd

GIVE_UP_AFTER = 32
"""Number of unreadable in-distribution images after which one of several ranks ends the run."""


class BatchReader:
    """Turns the batches of test loaders into dicts with all keys, and checks the images.

    Args:
        datasets: Names of the datasets, the in-distribution one first.
        done: Indices, by dataset, of images that have results already.
        rank: Number of this rank.
        world_size: Number of ranks.

    Attributes:
        arrived: Number of images of each dataset that loaders have delivered, unreadable ones
            included.
        usable: Number of images of each dataset that could be read, earlier results included.
        first_error: The first unreadable in-distribution image, and why it is unreadable.
    """

    def __init__(
        self, datasets: list[str], done: Mapping[str, set[int]], rank: int, world_size: int
    ):
        self.datasets, self.done = datasets, done
        self.rank, self.world_size = rank, world_size
        self.arrived = dict.fromkeys(datasets, 0)
        self.usable = dict.fromkeys(datasets, 0)
        self.first_error = ""

    def read(self, batch: Any, dataset: str) -> dict[str, Any]:
        """Return a batch as a dict with all keys, without images that have results.

        The keys are ``image``, ``label``, ``index``, ``path`` and ``unreadable``.

        Args:
            batch: Dict with ``image`` [N, 3, H, W], pair (images, labels), or images.
            dataset: Name of its dataset.

        Raises:
            InputError: The batch has an ``error``, an image has NaN, or no in-distribution image
                was usable.
        """
        batch = dict(as_batch(batch, "image"))
        if "error" in batch:
            raise InputError(batch["error"])
        self._complete(batch, dataset)
        self.arrived[dataset] += len(batch["image"]) + len(batch["unreadable"])
        if done := self.done.get(dataset):
            batch = _without(batch, done)
        _check_finite(batch, dataset)
        self.usable[dataset] += len(batch["image"])
        if dataset == self.datasets[0] and batch["unreadable"] and not self.first_error:
            item = batch["unreadable"][0]
            self.first_error = f"{item['path']}: {item['error']}"
        self._check_in_distribution(dataset)
        return batch

    def add_earlier(self, earlier: "pd.DataFrame") -> None:
        """Count the usable images of an interrupted run.

        Args:
            earlier: Table of its scores.
        """
        scored = earlier[earlier["error"].isna()]
        for name in self.datasets:
            self.usable[name] = int((scored["dataset"] == name).sum())

    def check_calibration(self) -> None:
        """Raise an `InputError` if no calibration image is usable.

        One of several ranks only sees its part of them, and does not check.
        """
        if not self.usable[self.datasets[0]] and self.world_size == 1:
            raise InputError(self._all_unusable())

    def _complete(self, batch: dict[str, Any], dataset: str) -> None:
        """Add the keys that a loader may leave out."""
        count, device = len(batch["image"]), torch.as_tensor(batch["image"]).device
        batch.setdefault("unreadable", [])
        batch.setdefault("label", torch.full((count,), -1, device=device))
        batch.setdefault("path", [""] * count)
        if "index" not in batch:
            # images are numbered in the order of arrival, and no two ranks use the same numbers
            first = self.arrived[dataset]
            numbers = torch.arange(first, first + count, device=device)
            batch["index"] = numbers * self.world_size + self.rank

    def _check_in_distribution(self, dataset: str) -> None:
        """Stop after an in-distribution dataset without usable images, not after all others."""
        ind = self.datasets[0]
        if dataset == ind or self.usable[ind] or not self.arrived[ind]:
            return
        # on several ranks a few unreadable images may be all that this one got
        if self.world_size == 1 or self.arrived[ind] >= GIVE_UP_AFTER:
            raise InputError(f"{self._all_unusable()}; check data.root")

    def _all_unusable(self) -> str:
        ind = self.datasets[0]
        return (
            f"{ind}: none of its {self.arrived[ind]} images could be used; "
            f"the first, {self.first_error}"
        )


def dataset_names(loaders: Any, groups: Mapping[str, str], calibrating: bool) -> list[str]:
    """Return the names of the test loaders' datasets, the in-distribution one first.

    Args:
        loaders: Dict from dataset name to loader.
        groups: Group of each dataset but the first; without an entry, its name.
        calibrating: Whether calibration images alone are scored.

    Raises:
        InputError: The loaders are something else or too few, or a name is ambiguous in the result
            table.
    """
    given = list(loaders) if isinstance(loaders, Mapping) else []
    names = [checked_name("test loaders: the dataset name", name) for name in given]
    if calibrating and names:
        return names
    shifted = {name for name in names[1:] if groups.get(name, name) == CSID}
    if len(set(names) - {CALIBRATION} - shifted) < 2:
        raise InputError(
            "test loaders: must be a dict from dataset name to loader, "
            "the in-distribution one first, then at least one out-of-distribution one"
        )
    if names[0] == CALIBRATION:
        raise InputError(
            f"test loaders: the first must be the in-distribution one, not {CALIBRATION!r}"
        )
    if len(set(names)) < len(names):
        raise InputError(f"test loaders: the dataset names {', '.join(names)} must be unique")
    # the table has a row for each dataset, for each group of several, and for the means
    means = {MEAN: "the mean over a group", AVERAGE: "the average of all datasets"}
    group_names = [groups.get(name, name) for name in names[1:]]
    for name, group in zip(names[1:], group_names, strict=True):
        others = group_names.count(name) - (group == name)
        if name in means or others:
            what = means.get(name, "a group of datasets")
            raise InputError(f"dataset {name!r}: has the name of {what}; rename it")
        if shifted and name.startswith(FULL_SPECTRUM) | group.startswith(FULL_SPECTRUM):
            raise InputError(
                f"dataset {name!r} of group {group!r}: names that begin with {FULL_SPECTRUM} are "
                "reserved for full-spectrum results; rename it"
            )
    return names


def is_in_distribution(dataset: str, ind: str, groups: Mapping[str, str]) -> bool:
    """Return whether the labels of a dataset are classes of the classifier.

    Args:
        dataset: Name of the dataset.
        ind: Name of the in-distribution dataset.
        groups: Group of each other dataset.
    """
    return dataset in (ind, CALIBRATION) or groups.get(dataset) == CSID


def _without(batch: dict[str, Any], done: set[int]) -> dict[str, Any]:
    """Return a batch without images that have results.

    Data modules of this package do not even load them.
    """
    indices = torch.as_tensor(batch["index"]).tolist()
    kept = [i for i, index in enumerate(indices) if index not in done]
    unreadable = [item for item in batch["unreadable"] if item["index"] not in done]
    if len(kept) == len(indices):
        return batch | {"unreadable": unreadable}
    tensors = {name: torch.as_tensor(batch[name])[kept] for name in ("image", "label", "index")}
    paths = [batch["path"][i] for i in kept]
    return batch | tensors | {"path": paths, "unreadable": unreadable}


def _check_finite(batch: Mapping[str, Any], dataset: str) -> None:
    """Raise an `InputError` that names the first image with NaN or infinite values."""
    images = batch["image"]
    if len(images) == 0:
        return
    bad = ~images.isfinite().flatten(1).all(dim=1)
    if bad.any():
        i = int(bad.nonzero()[0])
        name = f"{dataset} image {int(batch['index'][i])} {batch['path'][i]}"
        raise InputError(f"{name}: has NaN or infinite values; remove it")
