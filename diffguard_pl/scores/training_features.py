"""Classifier's features of training images, to which baselines are fitted.

They are computed once and kept in the cache for later runs with this classifier and data.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoints.download import cache_folder
from ..classifiers.classifier import Classifier
from ..errors import InputError
from ..metrics.chance import describe_chance
from ..runs.files import atomic_write
from ..runs.lock import locked
from ..runs.record import weights_hash
from ..stages import as_batch
from .baselines.collection import Baselines

VERSION = 1
"""Version of the cached files: another one makes them be computed again."""


def training_features(
    classifier: Classifier, loader: Iterable[Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute features [N, D], logits [N, classes] and labels [N] of a loader's images, on the CPU.

    Args:
        classifier: Classifier under protection.
        loader: Batches, pairs (image, label) or dicts with these keys; images [N, 3, H, W] in
            [0, 1].

    Raises:
        InputError: The loader has no readable images.
    """
    return features_of_networks([classifier], loader)[0]


def features_of_networks(
    networks: Sequence[Classifier], loader: Iterable[Any]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Compute :func:`training_features` of several networks, in one pass over the images."""
    for network in networks:
        network.eval()  # a user's own may have been set to train
    features: list[list[Tensor]] = [[] for _ in networks]
    logits: list[list[Tensor]] = [[] for _ in networks]
    labels: list[Tensor] = []
    broken: list[Mapping[str, Any]] = []
    for given in loader:
        batch = as_batch(given, "image", "label")
        broken += batch.get("unreadable", ())
        image, label = batch["image"], batch["label"]
        if len(image) == 0:
            continue
        for number, network in enumerate(networks):
            view = network.view(image.to(network.mean.device))
            features[number].append(view.features.cpu())
            logits[number].append(view.logits.cpu())
        labels.append(torch.as_tensor(label))
    why = ""
    if broken:
        example = f"{broken[0]['path']}: {broken[0]['error']}"
        why = f" ({len(broken)} could not be read, e.g. {example})"
    if not labels:
        raise InputError(f"baselines: no training images to fit to{why}; set data.train to some")
    if broken:
        warnings.warn(f"baselines are fitted without some training images{why}", stacklevel=2)
    of_all = torch.cat(labels)
    return [
        (torch.cat(features[number]), torch.cat(logits[number]), of_all)
        for number in range(len(networks))
    ]


def fit_baselines(
    baselines: Baselines,
    classifier: Classifier,
    loader: Any,
    contents: dict[str, Any] | None,
    precision: str,
    first_rank: bool,
    wait_for_others: Callable[[], None],
    gives_labels: bool = True,
) -> None:
    """Fit baselines on training images.

    The first rank computes the features and keeps them in the cache; the others wait and read them.
    Without a description of the images, every rank computes them and none are kept.

    Args:
        baselines: Baselines to fit.
        classifier: Classifier under protection.
        loader: Batches of training images with labels; None without any.
        contents: What identifies these images; None if their features must not be cached.
        precision: Precision of the networks, part of the key of the cache.
        first_rank: Whether this process is the first rank.
        wait_for_others: Barrier of all ranks.
        gives_labels: Whether the classifier predicts labels, so that wrong ones are noticed.

    Raises:
        InputError: Training images are missing or do not suffice.
    """
    if loader is None:
        raise InputError(
            f"baselines: {', '.join(baselines.unfitted)} must be fitted to training images; set "
            "data.train, or call module.diffguard.fit_baselines(loader)"
        )
    if contents is None:
        features, logits, labels = training_features(classifier, loader)
        _warn_of_labels(logits, labels, first_rank and gives_labels)
        baselines.fit_features(features, logits, labels)
        return

    def compute() -> dict[str, Tensor]:
        from rich.progress import track

        shown = track(loader, "fitting baselines", disable=False, transient=True)
        features, logits, labels = training_features(classifier, shown)
        return {"features": features, "logits": logits, "labels": labels}

    key = classifier_key(classifier, contents, precision)
    path = cached_file(key if gives_labels else {"second_network": key})
    kept = computed_once(path, compute, first_rank, wait_for_others)
    total = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
    missing = total - len(kept["labels"])
    if first_rank and missing > 0:
        warnings.warn(
            f"{path} lacks {missing} of {total} training images, which could not be read; remove "
            "it once they can be",
            stacklevel=2,
        )
    _warn_of_labels(kept["logits"], kept["labels"], first_rank and gives_labels)
    baselines.fit_features(kept["features"], kept["logits"], kept["labels"])


def cached_file(key: Mapping[str, Any]) -> Path:
    """Return the path of the cached features of a key: everything on which they depend."""
    digest = sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "features" / f"{digest}.safetensors"


def computed_once(
    path: Path,
    compute: Callable[[], dict[str, Tensor]],
    first_rank: bool,
    wait_for_others: Callable[[], None],
) -> dict[str, Tensor]:
    """Return tensors that the first rank computes and keeps in a file, and the others read.

    Args:
        path: Path of the file. Where it exists, nothing is computed.
        compute: Returns the tensors by name, on the CPU.
        first_rank: Whether this process is the first rank.
        wait_for_others: Barrier of all ranks.

    Raises:
        InputError: The ranks do not see the same files.
    """
    if first_rank and not path.is_file():
        with _locked(path):
            # Jobs of an array start together: another one may have computed them meanwhile.
            if not path.is_file():
                computed = compute()
                with atomic_write(path) as unfinished:
                    save_file(computed, unfinished)
    # The other ranks read what rank 0 wrote.
    wait_for_others()
    if not path.is_file():
        raise InputError(
            f"DIFFGUARD_CACHE: {path}, written by rank 0, not found; set it to a folder that all "
            "nodes share"
        )
    return load_file(path)


def _warn_of_labels(logits: Tensor, labels: Tensor, first_rank: bool) -> None:
    """Warn if the classifier is right on as many training images as by guessing."""
    is_labelled = labels >= 0
    correct = (logits.argmax(1) == labels)[is_labelled].sum()
    counts = int(correct), int(is_labelled.sum()), logits.shape[1]
    if first_rank and (line := describe_chance("data.train", *counts)):
        warnings.warn(line, stacklevel=3)


def classifier_key(
    classifier: Classifier, contents: dict[str, Any], precision: str
) -> dict[str, Any]:
    """Return everything on which the features depend.

    Args:
        classifier: Classifier, for its weights and preprocessing.
        contents: Which images, and how they are prepared.
        precision: Precision of the networks.
    """
    preprocessing = {
        name: getattr(classifier, name)
        for name in ("input_size", "crop", "interpolation", "heads", "cam_layer")
    }
    preprocessing["mean"] = classifier.mean.flatten().tolist()
    preprocessing["std"] = classifier.std.flatten().tolist()
    model = classifier.model
    layers = re.sub("0x[0-9a-f]+", "", repr(model))  # addresses differ from run to run
    return {
        "version": VERSION,
        "weights": weights_hash(classifier),
        "seen": preprocessing,
        "contents": contents,
        "model": f"{type(model).__module__}\n{layers}",
        "precision": precision,
        "dtype": str(next(iter(model.parameters()), torch.zeros(0)).dtype),
        "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
    }


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that several processes would compute."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except OSError as error:
            raise InputError(
                f"DIFFGUARD_CACHE: cannot write beside {path} ({error.strerror or error}); set it "
                "to a writable folder"
            ) from error
        yield
