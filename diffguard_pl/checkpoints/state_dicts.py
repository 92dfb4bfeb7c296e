"""The weights of one model in a checkpoint file, wherever in the file they are.

Training programs save a model's state dict by itself or inside of other dicts (``state_dict``,
``model``, ``net``, ``ema``), and DistributedDataParallel, torch.compile, Lightning and others put
prefixes before its keys. No list of such names is needed: the names of nested dicts count as
prefixes, and the weights are under the prefix under which the model's keys are found.
"""

import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, beginning
from .tensors import weight_problem

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of a key that DataParallel, torch.compile, FSDP and activation checkpointing add."""
AVERAGE_WORDS = {"ema", "swa", "averaged"}
"""Words in the names of weights that are averages over the steps of the training."""
TRAINING_NAMES = {"n_averaged", "total_ops", "total_params"}
"""Last parts of the keys of counters: those of averaged weights and of profilers."""
TRAINING_WORDS = AVERAGE_WORDS | {
    *("criterion", "criteria", "loss", "losses", "ce", "bce", "nll"),
    *("metric", "metrics", "acc", "accuracy", "auc", "auroc", "precision", "recall", "confmat"),
}
"""Words in the keys of what only the training needs: losses, metrics, averages."""
OPTIONAL_NAME = "num_batches_tracked"
"""Last part of keys that files of old versions of torch lack, and that torch does not require."""
CONTAINERS = (dict, list, tuple)
"""Types of containers in which tensors are looked for."""
MAX_DEPTH = 8
"""Depth of nested containers down to which tensors are looked for."""
KEYS_SHOWN = 3
"""Number of a file's keys in an error message."""


class OriginalTensor(NamedTuple):
    """A tensor and its key in the checkpoint file, so that an error can name the key users find."""

    key: str
    tensor: Tensor


Entries = dict[str, OriginalTensor]
"""Tensors of a file by name: the names of the nested dicts and the key, joined by dots."""


@dataclass(frozen=True)
class Weights:
    """Place in a checkpoint file where keys of a model are.

    Attributes:
        entries: All tensors of the file.
        prefix: Prefix of the model's keys without wrappers, such as ``state_dict.net.``.
        names: Names of the tensors under the prefix by their key, which is the model's if the model
            has it.
        is_complete: Whether all keys of the model are found.
        place: Name of the place for messages.
        is_averaged: Whether the tensors are averages over the steps of the training.
    """

    entries: Entries
    prefix: str
    names: dict[str, str]
    is_complete: bool
    place: str
    is_averaged: bool

    @property
    def tensors(self) -> Entries:
        """The tensors under the prefix by their key."""
        return {key: self.entries[name] for key, name in self.names.items()}

    def nearest(self, key: str) -> Tensor | None:
        """Return the tensor of a key under the prefix, else under the next shorter one, if any."""
        names = {without_wrappers(name): name for name in self.entries}
        parts = self.prefix.split(".")
        for end in reversed(range(len(parts))):
            name = names.get(".".join([*parts[:end], key]))
            if name is not None:
                return self.entries[name].tensor
        return None


# ---- find


def find_weights(content: Any, keys: Collection[str]) -> list[Weights]:
    """Find the places in a checkpoint file where the keys of a model are.

    Args:
        content: Content of the file, see :func:`~diffguard_pl.checkpoints.tensors.load_content`.
        keys: Keys of the model, or enough of them to recognise it.

    Returns:
        The places with all keys; without any, those with the most keys; empty if no key is found.
    """
    entries = dict(_entries(content))

    # Compare names without wrappers, unless that would make two of them the same.
    clean: Callable[[str], str] = without_wrappers
    if _has_duplicates(map(clean, entries)) or _has_duplicates(map(clean, keys)):
        clean = str
    names = {clean(name): name for name in entries}
    model_keys = {clean(key): key for key in keys}

    # Each ending of a name that is a key of the model is a find under the prefix before it.
    longest = max((key.count(".") + 1 for key in model_keys), default=0)
    found: dict[str, dict[str, str]] = {}
    for name, original in names.items():
        parts = name.split(".")
        for start in range(max(0, len(parts) - longest), len(parts)):
            key = ".".join(parts[start:])
            if key in model_keys:
                prefix = "".join(f"{part}." for part in parts[:start])
                found.setdefault(prefix, {})[model_keys[key]] = original

    required = {key for key in keys if key.rpartition(".")[2] != OPTIONAL_NAME}
    complete = [prefix for prefix, keys_here in found.items() if required <= keys_here.keys()]
    if not complete:
        most = max(map(len, found.values()), default=0)
        best = [prefix for prefix, keys_here in found.items() if len(keys_here) == most]
    return [
        Weights(
            entries=entries,
            prefix=prefix,
            names=_with_neighbours(found[prefix], prefix, names, entries),
            is_complete=bool(complete),
            place=beginning(prefix.rstrip(".")) or "the top level",
            is_averaged=_is_averaged(prefix),
        )
        for prefix in complete or best
    ]


def choose_weights(found: list[Weights], use_ema: bool, path: Path, setting: str) -> Weights:
    """Choose one of the places where a model's weights are.

    Args:
        found: Places that are all as good.
        use_ema: Whether to prefer averages over the steps of the training, if the file has both.
        path: The file, for messages.
        setting: Name of the setting ``use_ema``, for messages.

    Raises:
        InputError: Several places are left, and their tensors differ.
    """
    trained = [weights for weights in found if not weights.is_averaged]
    averaged = [weights for weights in found if weights.is_averaged]
    if not averaged:
        averaged = [average for weights in trained if (average := _compvis_average(weights))]
    preferred, other = (averaged, trained) if use_ema else (trained, averaged)
    chosen = _only_one(preferred or other, path)
    if preferred and other:
        print(
            f"checkpoint {path}: uses the weights of {chosen.place}, not of {other[0].place}; for "
            f"the other ones set {setting} to {str(not use_ema).lower()}",
            file=sys.stderr,
        )
    return chosen


def is_for_training(key: str) -> bool:
    """Return whether a key that a model lacks is that of a loss, a metric or a counter."""
    if key.rpartition(".")[2] in TRAINING_NAMES:
        return True
    return not TRAINING_WORDS.isdisjoint(_words(key))


def without_wrappers(name: str) -> str:
    """Return a key without what wrappers of modules, such as DataParallel, add to it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def first_keys(content: Any) -> str:
    """Say what a checkpoint file begins with, to end an error message."""
    entries = dict(_entries(content))
    if not entries:
        keys = list(content) if isinstance(content, dict) else []
        shown = ", ".join(beginning(str(key)) for key in keys[:KEYS_SHOWN])
        return f"the file has no tensors, but {shown or f'a {type(content).__name__}'}"

    # of the dict with the most tensors
    folders = Counter(_folder(name, entries) for name in entries)
    folder = folders.most_common(1)[0][0]
    keys = [entry.key for name, entry in entries.items() if _folder(name, entries) == folder]
    shown = ", ".join(beginning(key) for key in keys[:KEYS_SHOWN])
    place = f" in {beginning(folder.rstrip('.'))}" if folder else ""
    return f"the file's first keys{place}: {shown}"


def refuse_wrong_values(weights: Entries, expected: Mapping[str, Tensor], where: str) -> None:
    """Raise an `InputError` for the first tensor that cannot be a weight, such as one with NaN.

    Args:
        weights: Tensors by the key of the module.
        expected: State dict of the module; other tensors are not looked at.
        where: Name of the file, for the message.
    """
    for key, (original_key, tensor) in weights.items():
        problem = weight_problem(tensor, expected[key]) if key in expected else None
        if problem:
            raise InputError(f"{where}: its {beginning(original_key)} {problem}")


# ---- parts


def _entries(content: Any) -> Iterator[tuple[str, OriginalTensor]]:
    """Yield the name of each tensor in nested containers, with its key and the tensor."""
    if not isinstance(content, CONTAINERS):
        return
    # a damaged pickle may have containers that hold themselves
    seen: set[int] = set()
    waiting = deque([("", content, 0)])
    while waiting:
        folder, container, depth = waiting.popleft()
        if id(container) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(container))
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in pairs:
            if isinstance(value, Tensor):
                yield f"{folder}{key}", OriginalTensor(str(key), value)
            elif isinstance(value, CONTAINERS):
                waiting.append((f"{folder}{key}.", value, depth + 1))


def _folder(name: str, entries: Entries) -> str:
    """Return the names of the nested dicts in the name of a tensor."""
    return name.removesuffix(entries[name].key)


def _with_neighbours(
    found: dict[str, str], prefix: str, names: dict[str, str], entries: Entries
) -> dict[str, str]:
    """Add other tensors under a prefix that are in the same dicts as those of the model's keys."""
    folders = {_folder(name, entries) for name in found.values()}
    keys = {original: key for key, original in found.items()}
    under_prefix = {}
    for name, original in names.items():
        if original in keys:
            under_prefix[keys[original]] = original
        elif name.startswith(prefix) and _folder(original, entries) in folders:
            under_prefix[name.removeprefix(prefix)] = original
    return under_prefix


def _only_one(places: list[Weights], path: Path) -> Weights:
    """Return the place at the top level, or any if all have the same tensors."""
    first = min(places, key=lambda weights: len(weights.prefix))
    others = [weights for weights in places if weights is not first]
    if first.prefix and not all(_are_equal(first, weights) for weights in others):
        names = ", ".join(weights.place for weights in places[:KEYS_SHOWN])
        raise InputError(
            f"checkpoint {path}: holds the keys of the model in {len(places)} places ({names}); "
            "save the state dict of one of them by itself"
        )
    return first


def _are_equal(one: Weights, other: Weights) -> bool:
    tensors, others = one.tensors, other.tensors
    for key in tensors.keys() & others.keys():
        a, b = tensors[key].tensor, others[key].tensor
        if a.dtype != b.dtype or not torch.equal(a, b):
            return False
    return True


def _compvis_average(weights: Weights) -> Weights | None:
    """Return the weights with those that CompVis' LitEma has averaged, if the file has any.

    LitEma(self.net) in self.net_ema names its tensor of ``net.conv.weight`` ``net_ema.convweight``,
    and has counters ``net_ema.decay`` and ``net_ema.num_updates``. Buffers are not averaged.
    """
    entries = weights.entries
    best: tuple[str, dict[str, str]] = "", {}
    for name in entries:
        root = name.removesuffix("num_updates")
        if root == name or f"{root}decay" not in entries:
            continue
        # only averages of a module around the weights, not those of a part of them
        parent, dot, _ = root.removesuffix(".").rpartition(".")
        if not weights.prefix.startswith(without_wrappers(f"{parent}{dot}")):
            continue
        averages = _averages_under(root, f"{parent}{dot}", weights)
        if len(averages) > len(best[1]):
            best = root, averages
    root, averages = best
    if not averages:
        return None
    return replace(
        weights,
        names=weights.names | averages,
        place=beginning(root.rstrip(".")),
        is_averaged=True,
    )


def _averages_under(root: str, parent: str, weights: Weights) -> dict[str, str]:
    """Map keys of weights to the names of their averages by LitEma.

    Args:
        root: Prefix of the averages.
        parent: Prefix of the module that has both the averages and the averaged module.
        weights: Weights whose averages are looked for.
    """
    # The averaged module is the prefix under which the most averages are found.
    by_module: dict[str, dict[str, str]] = {}
    for key, name in weights.names.items():
        if name.startswith(root):
            continue
        shape = weights.entries[name].tensor.shape
        parts = name.removeprefix(parent).split(".")
        for start in range(len(parts)):
            average = root + "".join(parts[start:])
            if average in weights.entries and weights.entries[average].tensor.shape == shape:
                by_module.setdefault(".".join(parts[:start]), {})[key] = average
    return max(by_module.values(), key=len, default={})


def _is_averaged(prefix: str) -> bool:
    words = _words(prefix)
    # ema_pytorch has the trained weights in `online_model` beside `ema_model`
    return not AVERAGE_WORDS.isdisjoint(words) and "online" not in words


def _words(key: str) -> set[str]:
    """Return the words in a key: ``val_loss2.weight`` -> val, loss, weight."""
    return set(re.findall("[a-z]+", key.lower()))


def _has_duplicates(names: Iterable[str]) -> bool:
    names = list(names)
    return len(set(names)) < len(names)
