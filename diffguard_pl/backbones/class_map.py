"""From the classifier's classes to the labels of the diffusion model, where they differ."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..checkpoints.class_maps import CLASS_MAPS
from ..errors import InputError, choose
from .base import Backbone

BY_NAME = "names"
"""Value of ``class_map`` that maps every class to the one of the same name."""
SHOWN = 8
"""Number of names in a message."""

Entry = int | str | None
"""A class of the diffusion model by number or name; None if it has no counterpart."""
ClassMapping = str | Sequence[Entry] | Mapping[str | int, Entry]


class ClassMap(nn.Module):
    """Maps the classifier's classes, and "no class" behind them, to a backbone's labels.

    Args:
        classes: Class of the backbone for each class of the classifier, by number or name, null
            where it has none; the name of a dataset in
            :data:`~diffguard_pl.checkpoints.class_maps.CLASS_MAPS`; ``names``, for the class of the
            same name; or a dict of classes of the classifier, by number or name, for those whose
            counterpart has another name.
        num_classes: Number of the classifier's classes.
        backbone: Diffusion model.
        names: Names of the classifier's classes, if known.

    Attributes:
        classes: Class of the backbone for each class of the classifier, None where it has none.
        without_counterpart: Names (numbers, where unknown) of the classes that have none. Images
            of these labels cannot be reconstructed under a label.
        null_label: Label for "no class" before mapping; None if the backbone has none.

    Raises:
        InputError: A name is unknown or stands for two classes, the number of classes is another, a
            class is unknown to the backbone, no class has a counterpart, or the backbone takes no
            label.
    """

    table: Tensor
    has_counterpart: Tensor

    def __init__(
        self,
        classes: ClassMapping,
        num_classes: int,
        backbone: Backbone,
        names: Sequence[str] | None = None,
    ):
        super().__init__()
        name = type(backbone).__name__
        if backbone.num_classes is None:
            raise InputError(
                f"class_map: {name} takes no label, and classifier guidance uses the classifier's "
                "own; set class_map to null"
            )
        own = list(names) if names else None
        entries = _entries(classes, num_classes, own, backbone)
        if len(entries) != num_classes:
            raise InputError(
                f"class_map: must have an entry for each of the classifier's {num_classes} "
                f"classes, has {len(entries)}; correct it, or classifier.model"
            )
        self.classes = [_number(i, entry, backbone) for i, entry in enumerate(entries)]
        missing = [i for i, label in enumerate(self.classes) if label is None]
        self.without_counterpart = [own[i] if own else str(i) for i in missing]
        if len(missing) == num_classes:
            raise InputError(
                f"class_map: none of the classifier's {num_classes} classes has a counterpart in "
                f"{name}; correct it, or choose another model"
            )
        if missing:
            shown = ", ".join(self.without_counterpart[:SHOWN])
            rest = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
            warnings.warn(
                f"class_map: {len(missing)} of the classifier's {num_classes} classes have no "
                f"counterpart in {name} ({shown}{rest}); images that are predicted as one of them "
                "are not diffused: their scores are NaN, and a detector rejects them",
                stacklevel=2,
            )

        # "No class" comes behind the classifier's classes.
        table = [0 if label is None else label for label in self.classes]
        self.null_label = None
        if backbone.null_label is not None:
            self.null_label = num_classes
            table.append(backbone.null_label)
        self.register_buffer("table", torch.tensor(table), persistent=False)
        known = torch.tensor([label is not None for label in self.classes])
        self.register_buffer("has_counterpart", known, persistent=False)

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


def _entries(
    classes: ClassMapping, num_classes: int, own: list[str] | None, backbone: Backbone
) -> Sequence[Entry]:
    """Return the entry of each class of the classifier."""
    if isinstance(classes, str):
        choose("class_map", classes, [BY_NAME, *CLASS_MAPS])
        if classes != BY_NAME:
            return CLASS_MAPS[classes]
        return _by_name({}, num_classes, own, backbone)
    if isinstance(classes, Mapping):
        return _by_name(classes, num_classes, own, backbone)
    return classes


def _by_name(
    given: Mapping[str | int, Entry], num_classes: int, own: list[str] | None, backbone: Backbone
) -> list[Entry]:
    """Return the entries that are given, and the class of the same name for all others."""
    if own is None and len(given) < num_classes:
        raise InputError(
            "class_map: the classifier's classes have no names here; give a list with one entry "
            "for each class"
        )
    numbers: dict[int, Entry] = {}
    for key, entry in given.items():
        number = _index(key, own or []) if isinstance(key, str) else int(key)
        if number is None and isinstance(key, str) and key.isdecimal():
            number = int(key)
        if isinstance(key, float) or number in numbers:
            raise InputError(f"class_map: {key!r} is no class, or given twice; correct it")
        if number is None or not 0 <= number < num_classes:
            raise InputError(
                f"class_map: {key!r} is no class of the classifier, which has {num_classes}"
                f"{_some(own)}; correct it"
            )
        numbers[number] = entry
    known = backbone.class_names or []
    found: list[Entry] = []
    for i in range(num_classes):
        found.append(numbers[i] if i in numbers else _index(own[i] if own else "", known))
    return found


def _number(i: int, entry: Entry, backbone: Backbone) -> int | None:
    """Return the backbone's class of an entry."""
    name = type(backbone).__name__
    if isinstance(entry, str):
        if not backbone.class_names:
            raise InputError(
                f"class_map: entry {i} is {entry!r}, but the classes of {name} have no names here; "
                "give its number"
            )
        number = _index(entry, backbone.class_names)
        if number is None:
            raise InputError(
                f"class_map: entry {i} is {entry!r}, which is no class of {name}"
                f"{_some(backbone.class_names)}; correct it"
            )
        return number
    if entry is None:
        return None
    classes = backbone.num_classes or 0
    if isinstance(entry, bool | float) or not 0 <= int(entry) < classes:
        raise InputError(
            f"class_map: entry {i} is {entry}, {name} has the classes 0 to {classes - 1}; "
            "correct it"
        )
    return int(entry)


def _index(name: str, names: Sequence[str]) -> int | None:
    """Return the place of a name among others, or of one of its synonyms (``tench, Tinca tinca``).

    Raises:
        InputError: Two classes have the name.
    """
    wanted = _synonyms(name)
    exact = [i for i, other in enumerate(names) if other == name]
    whole = exact or [i for i, other in enumerate(names) if _plain(other) == _plain(name)]
    found = whole or [i for i, other in enumerate(names) if wanted & _synonyms(other)]
    if len(found) > 1:
        raise InputError(
            f"class_map: {name!r} is the name of the classes {found[0]} and {found[1]}; give a "
            "number"
        )
    return found[0] if found else None


def _synonyms(name: str) -> set[str]:
    return {part for part in map(_plain, name.split(",")) if part}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _some(names: Sequence[str] | None) -> str:
    return f" ({', '.join(map(str, names[:3]))}, ...)" if names else ""
