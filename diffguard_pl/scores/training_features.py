"""Features of training images, which baselines are fitted to: computed once, and kept for runs with this classifier and data."""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoints.download import cache_folder
from ..classifiers.classifier import Classifier
from ..errors import InputError
from ..runs.files import atomic_write
from ..runs.record import weights_hash
from ..stages import as_batch
from .baselines.collection import NEEDS_FIT

if TYPE_CHECKING:
    from ..diffguard import DiffGuard


def training_features(
    classifier: Classifier, loader: Iterable[Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Features [N, D], logits [N, classes] and labels [N] of a loader's images, on the CPU.

    Raises:
        InputError: there are none.
    """
    device = classifier.mean.device
    views, labels = [], []
    broken: list[Mapping[str, Any]] = []
    for batch in loader:
        batch = as_batch(batch, "image", "label")
        broken += batch.get("unreadable", ())
        image, label = batch["image"], batch["label"]
        if len(image):
            view = classifier.view(image.to(device))
            views.append((view.features.cpu(), view.logits.cpu()))
            labels.append(torch.as_tensor(label))
    why = (
        f" ({len(broken)} could not be read, such as {broken[0]['path']}: {broken[0]['error']})"
        if broken
        else ""
    )
    if not views:
        raise InputError(f"fit: there are no images to fit the baselines on{why}")
    if broken:
        warnings.warn(f"baselines are fitted without some training images{why}", stacklevel=2)
    return torch.cat([f for f, _ in views]), torch.cat([z for _, z in views]), torch.cat(labels)


VERSION = 1
"""Of what is in the files: another one makes them be computed again."""


def fit(
    detector: "DiffGuard",
    loader: Any,
    contents: dict[str, Any] | None,
    precision: str,
    first_rank: bool,
    wait_for_others: Callable[[], None],
) -> None:
    """Fit the baselines of a detector on training images.

    One rank computes the features and keeps them in the cache, the others wait and read them. Where the data module does not say
    what its images are, every rank computes them, and nothing is kept.

    Args:
        loader: Batches of training images with labels; None without any.
        contents: What identifies these images; None where their features must not be cached.

    Raises:
        InputError: there are no training images.
    """
    if loader is None:
        names = ", ".join(name for name in detector.baselines.names if name in NEEDS_FIT)
        raise InputError(
            f"baselines {names}: need training images; set data.train, or call module.diffguard.fit(loader)"
        )
    if contents is None:
        detector.fit(loader)
        return
    path = (
        cache_folder() / "features" / f"{key(detector.classifier, contents, precision)}.safetensors"
    )
    if first_rank and not path.is_file():
        with _alone(path):  # jobs of an array begin together
            if not path.is_file():
                shown = track(loader, "fitting baselines", disable=False, transient=True)
                features, logits, labels = training_features(detector.classifier, shown)
                with atomic_write(path) as unfinished:
                    save_file(
                        {"features": features, "logits": logits, "labels": labels}, unfinished
                    )
    wait_for_others()
    if not path.is_file():
        raise InputError(
            f"{path}: the features that rank 0 has kept are not here; set DIFFGUARD_CACHE to a folder that all nodes share"
        )
    kept = load_file(path)
    total = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
    if first_rank and (lacking := total - len(kept["labels"])) > 0:
        said = f"{path}: is without {lacking} of {total} training images, which could not be read; remove it once they can be"
        warnings.warn(said, stacklevel=2)
    detector.baselines.fit_features(kept["features"], kept["logits"], kept["labels"])


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is in here with this file."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(
                "another process is computing the features of these training images; waiting for it",
                flush=True,
            )
            lock.acquire()
    except OSError as error:
        raise InputError(
            f"{lock.lock_file}: could not be written ({error.strerror or error})"
        ) from error
    try:
        yield
    finally:
        lock.release()


def key(classifier: Classifier, contents: dict[str, Any], precision: str) -> str:
    """Of everything that features depend on.

    Args:
        classifier: its weights and preprocessing.
        contents: which images, and how they are prepared.
        precision: of the networks.
    """
    seen = {
        name: getattr(classifier, name)
        for name in ("input_size", "crop", "interpolation", "heads", "cam_layer")
    }
    seen |= {"mean": classifier.mean.flatten().tolist(), "std": classifier.std.flatten().tolist()}
    dtype = str(next(iter(classifier.model.parameters()), torch.zeros(0)).dtype)
    what: dict[str, Any] = {
        "version": VERSION,
        "weights": weights_hash(classifier),
        "seen": seen,
        "contents": contents,
    }
    layers = re.sub("0x[0-9a-f]+", "", repr(classifier.model))  # addresses are another each time
    what |= {
        "model": f"{type(classifier.model).__module__}\n{layers}",
        "precision": precision,
        "dtype": dtype,
    }
    what |= {"tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]}
    return sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
