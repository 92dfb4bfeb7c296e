"""From the classifier's classes to the labels of the diffusion model, where they differ."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checkpoints.class_maps import CLASS_MAPS
from ..errors import InputError, choose
from .base import Backbone


class ClassMap(nn.Module):
    """Maps the classifier's classes, and "no class" behind them, to a backbone's labels.

    Args:
        classes: Class of the backbone for each class of the classifier, or the name of a dataset in
            :data:`~diffguard_pl.checkpoints.class_maps.CLASS_MAPS`.
        num_classes: Number of the classifier's classes.
        backbone: Diffusion model.

    Attributes:
        classes: Class of the backbone for each class of the classifier.
        null_label: Label for "no class" before mapping; None if the backbone has none.

    Raises:
        InputError: The name is unknown, the number of classes is another, a class is unknown to the
            backbone, or the backbone takes no label.
    """

    table: Tensor

    def __init__(self, classes: str | Sequence[int], num_classes: int, backbone: Backbone):
        super().__init__()
        name = type(backbone).__name__
        if backbone.num_classes is None:
            raise InputError(
                f"class_map: {name} takes no label, and classifier guidance uses the classifier's "
                "own; set class_map to null"
            )
        if isinstance(classes, str):
            choose("class_map", classes, list(CLASS_MAPS))
            classes = CLASS_MAPS[classes]
        self.classes = [int(label) for label in classes]
        if len(self.classes) != num_classes:
            raise InputError(
                f"class_map: must have an entry for each of the classifier's {num_classes} "
                f"classes, has {len(self.classes)}; correct it, or classifier.model"
            )
        for number, label in enumerate(self.classes):
            if not 0 <= label < backbone.num_classes:
                raise InputError(
                    f"class_map: entry {number} is {label}, {name} has the classes 0 to "
                    f"{backbone.num_classes - 1}; correct it"
                )

        # "No class" comes behind the classifier's classes.
        table = list(self.classes)
        self.null_label = None
        if backbone.null_label is not None:
            self.null_label = num_classes
            table.append(backbone.null_label)
        self.register_buffer("table", torch.tensor(table), persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        """Return the backbone's labels [N] of the classifier's classes, or of "no class", [N]."""
        return self.table[labels]


def check_without_map(num_classes: int, backbone: Backbone) -> None:
    """Check that a classifier's classes can be labels of a backbone as they are.

    Raises:
        InputError: The classifier has more classes than the backbone.
    """
    if backbone.num_classes is None or num_classes == backbone.num_classes:
        return
    if num_classes > backbone.num_classes:
        raise InputError(
            f"classifier: must have at most the {backbone.num_classes} classes of the backbone, "
            f"not {num_classes}; choose a classifier and a backbone with the same classes, or set "
            "class_map"
        )
    warnings.warn(
        f"classifier: has {num_classes} classes, {type(backbone).__name__} has "
        f"{backbone.num_classes}, and class i of one is taken for class i of the other; if they "
        "differ, set model.class_map",
        stacklevel=2,
    )
