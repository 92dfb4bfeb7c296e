"""What the studies of Fashion-MNIST share: arguments, weights of a class split, runs and
measurements that are made once and then read."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.fashion import CLASS_SPLITS
from diffguard_pl.runs.files import atomic_write

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
    has ended."""
    if (folder / "metrics.csv").exists():
        return folder
    if (folder / "run.json").exists():
        arguments = ["--resume", str(folder)]
    else:
        arguments = ["--config", config, *settings, "--trainer.default_root_dir", str(folder)]
    done = subprocess.run([sys.executable, "-m", "diffguard_pl.test", *arguments])
    if done.returncode:
        sys.exit(done.returncode)  # the run has said why
    return folder


def measure_once(file: Path, measure: Callable[[], Mapping[str, np.ndarray]]) -> dict:
    """Read the arrays of an npz file by name, or measure them and keep them there."""
    if not file.exists():
        found = measure()
        with atomic_write(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found)
    with np.load(file) as kept:
        return dict(kept)


def evenly(source: Dataset, count: int) -> tuple[Tensor, np.ndarray]:
    """Return evenly spaced images of a dataset, and their labels."""
    some = spread(source, count)
    batch = default_collate([some[i] for i in range(len(some))])
    return batch["image"], batch["label"].numpy()
