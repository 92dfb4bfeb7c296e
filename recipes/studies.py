"""What the studies of Fashion-MNIST share: arguments, weights of a class split, runs and
measurements that are made once and then read."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from torch.utils.data import Dataset, default_collate

from diffguard_pl.datamodules.base import OODData, spread
from diffguard_pl.datamodules.fashion import CLASS_SPLITS
from diffguard_pl.errors import InputError
from diffguard_pl.metrics.bootstrap import RESAMPLES
from diffguard_pl.runs.files import atomic_write

Calibrate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Calibrates, on scores of calibration images [m], scores [n]."""
SPLITS = range(1, len(CLASS_SPLITS) + 1)


def study_parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """Return a parser of ``--weights`` and ``--out``.

    Args:
        description: The recipe's docstring.
        out: Name of the default folder of the runs or measurements, below ``runs``.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, default=Path("runs/fashion"), help="--out of recipes/fashion.py"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / out, help="what exists there is read"
    )
    return parser


def add_splits(parser: argparse.ArgumentParser) -> None:
    """Add ``--splits``, the class splits to study."""
    parser.add_argument(
        "--splits", type=int, nargs="*", default=SPLITS, choices=SPLITS, help="default: all"
    )


def measured_splits(
    description: str | None, out: str, measure: Callable[[int, str, Path], Mapping[str, np.ndarray]]
) -> tuple[list[int], list[dict]]:
    """Read the command line, and measure each class split or read what has been kept of it.

    Args:
        description: The recipe's docstring.
        out: Name of the default folder of the measurements, below ``runs``.
        measure: Of a class split, ``test`` or ``tuning``, and the folder of the weights.

    Returns:
        The class splits, and the arrays of each by name.
    """
    parser = study_parser(description, out)
    parser.add_argument("--split", choices=("test", "tuning"), default="test")
    add_splits(parser)
    given = parser.parse_args()
    try:
        return given.splits, [
            measure_once(
                given.out / f"{given.split}_{n}.npz",
                partial(measure, n, given.split, given.weights),
            )
            for n in given.splits
        ]
    except InputError as error:
        sys.exit(f"error: {error}")


def weights_of(config: str, split: int, weights: Path) -> dict[str, str]:
    """Return the settings of ``model`` that name the weights of a class split; those of the first
    are the config's."""
    if split == 1:
        return {}
    own = weights / f"split_{split}"
    backbone = "fashion_gdm" if "gdm" in config else "fashion_ldm"
    return {
        "classifier.checkpoint": str(own / "fashion_classifier"),
        "backbone.init_args.checkpoint": str(own / backbone),
    }


def settings_of(config: str, split: int, weights: Path) -> dict[str, str]:
    """Return the same as keyword arguments of :func:`diffguard_pl.load`."""
    own = weights_of(config, split, weights)
    return {name.replace(".", "__"): value for name, value in own.items()}


def run_once(config: str, folder: Path, settings: list[str]) -> Path:
    """Run a config into a folder and return it; resume a run that was interrupted, read one that
    has ended. Ends with an error where the folder holds a run with other arguments."""
    given = ["--config", config, *settings]
    record = folder.with_name(f"{folder.name}.arguments.json")
    has_begun = (folder / "run.json").exists()
    if has_begun and record.exists() and json.loads(record.read_text("utf-8")) != given:
        sys.exit(f"error: {folder}: was run with other arguments ({record}); give another --out")
    if (folder / "metrics.csv").exists():
        return folder
    with atomic_write(record) as temporary:
        temporary.write_text(json.dumps(given), "utf-8")
    if has_begun:
        arguments = ["--resume", str(folder)]
    else:
        arguments = [*given, "--trainer.default_root_dir", str(folder)]
    done = subprocess.run([sys.executable, "-m", "diffguard_pl.test", *arguments])
    if done.returncode:
        sys.exit(done.returncode)  # the run has said why
    return folder


def measure_once(file: Path, measure: Callable[[], Mapping[str, np.ndarray]]) -> dict:
    """Read the arrays of an npz file by name, or measure them and keep them there.

    Raises:
        InputError: The file is damaged.
    """
    if not file.exists():
        found = measure()
        with atomic_write(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found)
    try:
        with np.load(file) as kept:
            return dict(kept)
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        raise InputError(f"{file}: cannot be read; remove it to measure again") from error


def evenly(source: Dataset, count: int) -> dict:
    """Return evenly spaced images of a dataset as a batch: ``image``, ``label``, ``path``."""
    some = spread(source, count)
    return default_collate([some[i] for i in range(len(some))])


def known_and_near(data: OODData, known: int, other: int) -> list[dict]:
    """Return batches of known images, and of each near-OOD or tuning dataset, evenly spaced."""
    sources = data.test_sources()
    near = [name for name in sources if data.groups.get(name) in ("near", "tuning")]
    first = evenly(next(iter(sources.values())), known)
    return [first, *(evenly(sources[name], other) for name in near)]


def calibrated_by_class(
    values: np.ndarray, labels: np.ndarray, calibration: np.ndarray, calibrate: Calibrate
) -> np.ndarray:
    """Calibrate scores [N] on those of the calibration images of the predicted class.

    Args:
        values: Scores [N].
        labels: Predicted classes [N].
        calibration: Which images are calibration images, bool [N].
        calibrate: Of the scores of these [m] and of images [n].
    """
    calibrated = np.empty(len(values))
    for label in np.unique(labels):
        of_class = labels == label
        calibrated[of_class] = calibrate(values[of_class & calibration], values[of_class])
    return calibrated


def image_weights(paths: Sequence[Sequence[str]], resamples: int = RESAMPLES) -> list[np.ndarray]:
    """Draw a Bayesian bootstrap over images (Rubin 1981) that all parts of a study share.

    Class splits are tested on the same images of known classes and of the far datasets. Their
    results are not independent, so an image has the same weight in all of them.

    Args:
        paths: What identifies the images, for each part [N].
        resamples: Number of draws R.

    Returns:
        Weights of the images of each part [1 + R, N]; the first row is 1, the images as they are.
    """
    names, places = np.unique(np.concatenate(list(paths)), return_inverse=True)
    weights = np.random.default_rng(100).exponential(size=(resamples, len(names)))
    weights = np.concatenate([np.ones((1, len(names))), weights])
    ends = np.cumsum([len(part) for part in paths])[:-1]
    return [weights[:, of_part] for of_part in np.split(places, ends)]


def mean_auroc(values: np.ndarray, members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUROC [1 + R] of scores [N] in percent for each row of weights [1 + R, N].

    It is the mean over the other datasets; ``members`` [N] is 0 for the known images, the index of
    the dataset for others, and -1 for images that do not count.
    """
    order = np.flatnonzero(members == 0)
    order = order[np.argsort(values[order], kind="stable")]
    below = np.cumsum(weights[:, order], axis=1)
    below = np.concatenate([np.zeros((len(weights), 1)), below], axis=1)
    found = []
    for dataset in range(1, members.max() + 1):
        others = np.flatnonzero(members == dataset)
        low, high = (
            np.searchsorted(values[order], values[others], side) for side in ("left", "right")
        )
        known_below = (below[:, low] + below[:, high]) / (2 * below[:, -1:])
        weight = weights[:, others] / weights[:, others].sum(axis=1, keepdims=True)
        found.append(100 * (1 - (weight * known_below).sum(axis=1)))
    return np.mean(found, axis=0)


def interval(drawn: np.ndarray) -> str:
    """Show a value and the 95 % interval of its draws [1 + R]."""
    low, high = np.percentile(drawn[1:], [2.5, 97.5])
    return f"{drawn[0]:+.1f} ({low:.1f} to {high:.1f})"
