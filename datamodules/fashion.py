"""Fashion-MNIST with held-out classes: real photographs, and OOD classes that are hard to tell.

Five class splits, in the manner of open-set recognition: eight of the ten classes are known, two
are out-of-distribution. Each class is held out once.
"""

import gzip
from functools import cache
from pathlib import Path
from torchvision.transforms.v2.functional import pad

import numpy as np
import torch
from torch import Tensor

from .base import ImageSet, OODData

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IMAGE_SIZE = 32
FIRST_HELD_OUT = (6, 9)


def class_splits() -> tuple[tuple[int, int], ...]:
    """Return the held-out classes of each split: shirt and ankle boot, then the others by seed."""
    others = [label for label in range(len(CLASS_NAMES)) if label not in FIRST_HELD_OUT]
    drawn = np.random.RandomState(100).permutation(others).reshape(-1, 2).tolist()
    return FIRST_HELD_OUT, *((first, second) for first, second in drawn)


CLASS_SPLITS = class_splits()
VAL_PER_CLASS = 250
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


class FashionDataModule(OODData):
    def __init__(self, class_split: int = 1, root: str | None = None):
        super().__init__()
        self.held_out = CLASS_SPLITS[class_split - 1]
        self.known = [c for c in range(10) if c not in self.held_out]

    def test_sources(self):
        return {}

    def _part(self, validation: bool) -> ImageSet:
        images, labels = idx("train")
        chosen = validation_mask(labels) == validation
        chosen &= np.isin(labels, self.known)
        index = np.flatnonzero(chosen)
        kept = [self.known.index(labels[i]) for i in index]
        return ImageSet(to_rgb(images[index]), kept, [f"train[{i}]" for i in index])

    def train_images(self) -> ImageSet:
        return self._part(False)

    def val_images(self) -> ImageSet:
        return self._part(True)


def validation_mask(labels: np.ndarray) -> np.ndarray:
    """Return which training images are for validation: 250 of each class, at random."""
    generator = np.random.RandomState(100)
    mask = np.zeros(len(labels), dtype=bool)
    for label in range(len(CLASS_NAMES)):
        mask[generator.permutation(np.flatnonzero(labels == label))[:VAL_PER_CLASS]] = True
    return mask


@cache
def idx(part: str) -> tuple[np.ndarray, np.ndarray]:
    images = np.frombuffer(
        gzip.open(DEBIAN / f"{part}-images-idx3-ubyte.gz").read(), np.uint8, offset=16
    ).reshape(-1, 28, 28)
    labels = np.frombuffer(
        gzip.open(DEBIAN / f"{part}-labels-idx1-ubyte.gz").read(), np.uint8, offset=8
    )
    return images, labels


def to_rgb(images: np.ndarray) -> Tensor:
    """Pad grey images [N, 28, 28] to [N, 3, 32, 32] in [0, 1]."""
    grey = torch.from_numpy(images.copy())[:, None].float() / 255
    return pad(grey, [2, 2, 2, 2]).expand(-1, 3, -1, -1)
