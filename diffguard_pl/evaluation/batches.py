"""TODO."""

from typing import Any

import torch

from ..errors import InputError


def _check_names(datasets: list[str], groups: dict[str, str]) -> None:
    """Raise an `InputError` where figures of a set and of a group would have one name."""
    of_group = [groups.get(name, name) for name in datasets[1:]]
    for name, group in zip(datasets[1:], of_group, strict=True):
        others = of_group.count(name) - (group == name)
        if name == "mean" or others:
            what = "the mean over a group" if name == "mean" else "a group of sets"
            raise InputError(f"data set {name!r}: so is {what} called; give it another name")


def _without(batch: dict[str, Any], done: set[int]) -> dict[str, Any]:
    """The batch less the images that have results; most data modules do not even load them."""
    kept = [
        i for i, index in enumerate(torch.as_tensor(batch["index"]).tolist()) if index not in done
    ]
    if len(kept) < len(batch["image"]):
        of_images = {"image": batch["image"][kept], "path": [batch["path"][i] for i in kept]}
        of_images |= {name: torch.as_tensor(batch[name])[kept] for name in ("label", "index")}
        batch = batch | of_images
    return batch | {
        "unreadable": [item for item in batch["unreadable"] if item["index"] not in done]
    }
