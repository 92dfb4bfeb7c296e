"""Oracle labels: reconstruct under true labels in place of the predicted ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..random_by_index import random_by_index

ORACLES = ["none", "ind", "all"]
"""Nothing; true labels of in-distribution images; these, and random labels for all other images."""


def oracle_labels(
    oracle: str, batch: Mapping[str, Any], dataset: str, in_distribution: bool, num_classes: int
) -> Tensor | None:
    """Return the labels [N] to reconstruct under, -1 for the predicted one.

    None stands for predicted labels of all images.

    Args:
        oracle: One of ``ORACLES``.
        batch: ``image``, ``label``, ``index`` and ``path`` of images.
        dataset: Name of their dataset.
        in_distribution: Whether the labels are the classifier's classes.
        num_classes: Number of these classes.

    Raises:
        InputError: The label of an in-distribution image is not one of the classes.
    """
    if oracle == "none" or (oracle == "ind" and not in_distribution):
        return None
    if in_distribution:
        unknown = (batch["label"] >= num_classes).nonzero()[:, 0].tolist()
        if unknown:
            i = unknown[0]
            name = f"{dataset} image {int(batch['index'][i])} {batch['path'][i]}"
            raise InputError(
                f"{name}: label {int(batch['label'][i])} is not one of the classifier's "
                f"{num_classes} classes; oracle={oracle} needs true labels"
            )
        return batch["label"]
    # an out-of-distribution image has no true label; its random one is the same in every run
    drawn = [
        random_by_index(dataset, index).randrange(num_classes)
        for index in torch.as_tensor(batch["index"]).tolist()
    ]
    return torch.tensor(drawn, device=batch["image"].device)
