"""The embedded benchmark: scanned handwritten digits, some of which the classifier has never seen.

In-distribution are scikit-learn's ``load_digits`` (UCI, 8x8 grey) without the classes 4 and 9,
split once and recorded in ``digits_split.json``. Out-of-distribution:

- ``digits_4_9``: the held-out 4 and 9, by the same writers (near);
- ``photos``: grey crops of scikit-learn's two sample photographs (far);
- ``letters``: letters in matplotlib's DejaVu fonts, reduced to 8x8 grey as the digits were (far);
- ``tuning``: chimeras (the top of one validation digit on the bottom of another) and symbols.
  Hyper-parameters are chosen on it and on the validation digits. It is in no test table.
"""

import json
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from diffguard_pl.errors import InputError, choose

from .base import ImageSet, OODData, digest
from .rendered import LETTERS, SYMBOLS, characters, photo_crops

CLASSES = (0, 1, 2, 3, 5, 6, 7, 8)
"""The digit that each of the eight labels stands for."""
IMAGE_SIZE = 16

GROUPS = {
    "test": {"digits_4_9": "near", "photos": "far", "letters": "far"},
    "tuning": {"tuning": "tuning"},
}
"""Group of each out-of-distribution dataset, by split."""


class DigitsDataModule(OODData):
    """The embedded benchmark; every image is [3, 16, 16] in [0, 1].

    Args:
        batch_size: Number of images per batch.
        split: ``test``, or ``tuning`` for the validation digits against the dataset ``tuning``, to
            choose hyper-parameters on.
        limit: Maximum number of images of each dataset, evenly spaced. Defaults to all.
        num_workers: Number of processes that load images. The images are in memory, so 0 is
            fastest.
    """

    def __init__(
        self,
        batch_size: int = 128,
        split: str = "test",
        limit: int | None = None,
        num_workers: int = 0,
    ):
        super().__init__(batch_size, num_workers, limit)
        choose("data.split", split, list(GROUPS))
        self.split, self.groups = split, GROUPS[split]
        self.class_names = [str(digit) for digit in CLASSES]

    def test_sources(self) -> dict[str, Dataset]:
        if self.split == "tuning":
            return {"digits_val": digits("val"), "tuning": tuning()}
        return {
            "digits": digits("test"),
            "digits_4_9": held_out(),
            "photos": photos(),
            "letters": letters(),
        }

    def calibration_source(self) -> Dataset:
        """Return the validation digits."""
        if self.split == "tuning" and self.calibrates and not self.only_calibration:
            raise InputError(
                "data.split=tuning: cannot calibrate on the validation digits, "
                "which are its in-distribution dataset; set it to test"
            )
        return digits("val")

    def train_source(self) -> Dataset:
        """Return the training digits."""
        return digits("train")

    def train_contents(self) -> dict[str, Any]:
        train = digits("train")
        return {"data": "digits", "images": len(train), "sha256": digest(train.images)}


def digits(part: str) -> ImageSet:
    """Return the in-distribution digits of one part: train, val or test."""
    images, target, split = _scans()
    return _image_set(
        images[split[part]],
        [CLASSES.index(target[i]) for i in split[part]],
        "load_digits",
        split[part],
    )


def held_out() -> ImageSet:
    """Return all scans of 4 and 9."""
    images, target, _ = _scans()
    chosen = [i for i, digit in enumerate(target) if digit not in CLASSES]
    return _image_set(images[chosen], [-1] * len(chosen), "load_digits", chosen)


def photos(count: int = 300) -> ImageSet:
    """Return grey crops, 48 to 240 px wide, of scikit-learn's ``china.jpg`` and ``flower.jpg``."""
    crops, names = photo_crops(count, 8)
    return _image_set(crops.astype(np.float32) / 255, [-1] * count, names)


def letters() -> ImageSet:
    """Return letters in six faces of DejaVu, upright and slanted."""
    return _rendered(LETTERS, slants=(0.0, 0.25))


def tuning(count: int = 200) -> ImageSet:
    """Return images to choose hyper-parameters on: chimeras of validation digits, and symbols."""
    images, target, split = _scans()
    generator = np.random.RandomState(100)
    chimeras: list[np.ndarray] = []
    names: list[str] = []
    while len(chimeras) < count:
        top, bottom = generator.choice(split["val"], 2)
        if target[top] != target[bottom]:
            chimeras.append(np.concatenate([images[top, :4], images[bottom, 4:]]))
            names.append(f"load_digits[{top}]/load_digits[{bottom}]")
    symbols = _rendered(SYMBOLS, slants=(0.0,))
    return ImageSet(
        torch.cat([_to_rgb(np.stack(chimeras)), symbols.images]),
        [-1] * (count + len(symbols)),
        names + symbols.paths,
    )


@cache
def _scans() -> tuple[np.ndarray, np.ndarray, dict[str, list[int]]]:
    """Return all scans [1797, 8, 8] in [0, 1], their digits [1797], and indices of each part."""
    from sklearn.datasets import load_digits

    data = load_digits()
    split = json.loads(
        resources.files(__package__).joinpath("digits_split.json").read_text(encoding="utf-8")
    )
    return (data.images / 16).astype(np.float32), data.target, split


def _rendered(text: str, slants: tuple[float, ...]) -> ImageSet:
    """Return characters, made as the UCI digits were.

    A glyph fills a bitmap of 32x32, and each pixel is the fraction of ink in a block of 4x4.
    """
    bitmaps, names = characters(text, 32, slants)
    # blocks [N, 8, 4, 8, 4]: rows and columns within a block are the third and fifth axis
    ink = bitmaps.reshape(-1, 8, 4, 8, 4) >= 128
    return _image_set(ink.mean(axis=(2, 4), dtype=np.float32), [-1] * len(names), names)


def _image_set(
    images: np.ndarray, labels: list[int], source: str | list[str], index: list[int] | None = None
) -> ImageSet:
    names = source if isinstance(source, list) else [f"{source}[{i}]" for i in index or []]
    return ImageSet(_to_rgb(images), labels, names)


def _to_rgb(images: np.ndarray) -> Tensor:
    """Enlarge grey images [N, 8, 8] to [N, 3, 16, 16], bilinear."""
    grey = torch.from_numpy(images)[:, None]
    return (
        interpolate(grey, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
        .expand(-1, 3, -1, -1)
        .contiguous()
    )
