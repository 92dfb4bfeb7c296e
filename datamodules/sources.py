"""Sources of images: image lists of OpenOOD, folders, Hugging Face datasets.

Each is a torch dataset of pairs (PIL image, label).
"""

import ast
import json
import operator
import os
import re
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lightning_utilities.core.imports import RequirementCache
from PIL import Image
from torch.utils.data import Dataset

from diffguard_pl.errors import InputError, choose

from .reading import read_image

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
)
HUGGING_FACE = RequirementCache("datasets")
SAVED_DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files of a folder that the ``datasets`` library has saved."""


class Entry(NamedTuple):
    """One image of a source.

    Attributes:
        path: Path below the root folder.
        label: Class number, -1 without a class.
    """

    path: str
    label: int


class ImageFiles(Dataset, ABC):
    """Image files below a root folder. Lists and folders are read on first use.

    Args:
        root: Root folder. No image may lie outside it.
        upright: Turn images as their EXIF orientation says (unlike torchvision's ``ImageFolder``).
        follow_links: Allow links that lead out of the root.
    """

    def __init__(self, root: str, upright: bool = False, follow_links: bool = False):
        self.root, self.upright, self.follow_links = Path(root).expanduser(), upright, follow_links

    @cached_property
    @abstractmethod
    def entries(self) -> list[Entry]:
        """Images of the source, in order."""

    def __len__(self) -> int:
        return len(self.entries)

    def files(self) -> set[str]:
        """Return the absolute paths of all images."""
        root = str(self._real_root)
        return {os.path.normpath(os.path.join(root, entry.path)) for entry in self.entries}

    def path_of(self, index: int) -> str:
        """Return the path of an image below the root."""
        return self.entries[index].path

    def label_of(self, index: int) -> int:
        """Return the class of an image, -1 without one."""
        return self.entries[index].label

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.entries[index]
        file = self.root / path
        if not self.follow_links and not file.resolve().is_relative_to(self._real_root):
            raise InputError(
                f"is a link that leads out of {self.root}; set follow_links: true to allow it"
            )
        return read_image(file, self.upright), label

    @cached_property
    def _real_root(self) -> Path:
        return self.root.resolve()

    def _without_linked_folders(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries, or raise an `InputError` for a folder that is a link out of the root.

        A whole folder of such images is a mistake in the settings; a single one is just unreadable.
        """
        if self.follow_links:
            return entries
        for folder in dict.fromkeys(str(PurePosixPath(entry.path).parent) for entry in entries):
            if not (self.root / folder).resolve().is_relative_to(self._real_root):
                raise InputError(
                    f"{self.root / folder}: is a link that leads out of {self.root}; "
                    "set follow_links: true to allow it"
                )
        return entries


class ImageList(ImageFiles):
    """An image list of OpenOOD: one line per image, with its path below the root and its label.

    The label is an integer, -1 for out-of-distribution, or a dictionary with the key ``label``.
    Paths may contain spaces. Empty lines and those that begin with ``#`` are ignored.

    Args:
        file: Path of the list.
        root: Folder that its paths are relative to.
        upright: Turn images as their EXIF orientation says.
        follow_links: Allow links that lead out of the root.
    """

    def __init__(self, file: str, root: str, upright: bool = False, follow_links: bool = False):
        super().__init__(root, upright, follow_links)
        self.file = Path(file).expanduser()

    @cached_property
    def entries(self) -> list[Entry]:
        try:
            # not splitlines(): a file name may contain other line separators
            lines = self.file.read_text(encoding="utf-8-sig").split("\n")
        except FileNotFoundError as error:
            raise InputError(f"image list {self.file}: file not found") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"image list {self.file}: cannot be read ({error})") from error
        entries = []
        for number, line in enumerate(map(str.strip, lines), 1):
            if line and not line.startswith("#"):
                entries.append(self._entry(line, number))
        if not entries:
            raise InputError(f"image list {self.file}: has no images")
        return self._without_linked_folders(entries)

    def _entry(self, line: str, number: int) -> Entry:
        where = f"image list {self.file}, line {number}"
        found = re.fullmatch(r"(.+?)\s+(-?\d{1,9}|\{.*\})", line)
        if not found:
            raise InputError(f"{where}: must be 'path label', not {line[:80]!r}")
        path, label = found.groups()
        is_absolute = path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", path)
        if is_absolute or ".." in re.split(r"[\\/]", path):
            raise InputError(
                f"{where}: {path[:80]!r} leads out of the root {self.root}; it must be below it"
            )
        return Entry(path, _label_of(label, where) if label.startswith("{") else int(label))


def _label_of(dictionary: str, where: str) -> int:
    """Return the label in a dictionary, which is written as JSON or as in Python."""
    try:
        try:
            content = json.loads(dictionary)
        except ValueError:
            content = ast.literal_eval(dictionary)
        return operator.index(content["label"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(
            f"{where}: must be a dictionary with an integer 'label', not {dictionary[:80]!r}"
        ) from error


class ImageDirectory(ImageFiles):
    """All images in a folder and its subfolders, by path, without labels.

    Hidden files and folders are ignored.

    Args:
        root: Root folder.
        upright: Turn images as their EXIF orientation says.
        follow_links: Allow links that lead out of the root.
    """

    @cached_property
    def entries(self) -> list[Entry]:
        entries = [Entry(path, -1) for path in _images_below(self.root)]
        return self._without_linked_folders(entries)


class ClassFolders(ImageFiles):
    """One folder per class, numbered by name as in torchvision's ``ImageFolder``.

    Hidden folders are ignored, while ``ImageFolder`` counts them.

    Args:
        root: Folder of the class folders.
        classes: Names of the folders in the order of the classifier's classes; all other folders
            are ignored. Defaults to all folders by name.
        upright: Turn images as their EXIF orientation says.
        follow_links: Allow links that lead out of the root.
    """

    def __init__(
        self,
        root: str,
        classes: list[str] | None = None,
        upright: bool = False,
        follow_links: bool = False,
    ):
        super().__init__(root, upright, follow_links)
        self.classes = classes

    @cached_property
    def names(self) -> list[str]:
        """Names of the class folders, in the order of their numbers."""
        return list(self.classes or sorted(set(self._folders.values())))

    @cached_property
    def _folders(self) -> dict[str, str]:
        """Class folder of each image, by path; images beside the folders have none."""
        paths = _images_below(self.root)
        return {path: PurePosixPath(path).parts[0] for path in paths if "/" in path}

    @cached_property
    def entries(self) -> list[Entry]:
        numbers = {name: number for number, name in enumerate(self.names)}
        with_images = set(self._folders.values())
        missing = [name for name in self.names if name not in with_images]
        if missing or not with_images:
            raise InputError(
                f"class folders {self.root}: no images in {missing[0] if missing else 'any folder'}"
            )
        entries = [
            Entry(path, numbers[name]) for path, name in self._folders.items() if name in numbers
        ]
        return self._without_linked_folders(entries)


def _images_below(root: Path) -> list[str]:
    """Return the paths of all images below a folder, relative to it, in order.

    Raises:
        InputError: The folder is missing, or has no images.
    """
    if not root.is_dir():
        raise InputError(f"folder {root}: not found")
    paths, walked = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in walked:  # a link to a folder above it
            subfolders.clear()
            continue
        walked.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        images = [
            file
            for file in files
            if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")
        ]
        paths += [Path(folder, file).relative_to(root).as_posix() for file in images]
    if not paths:
        raise InputError(
            f"folder {root}: has no images; their names must end in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(paths)


class HuggingFaceImages(Dataset):
    """A dataset of the Hugging Face ``datasets`` library (``pip install 'diffguard-pl[hf]'``).

    Args:
        path: Name on the hub, or a folder written by ``save_to_disk``.
        split: Split of the dataset, such as ``test``.
        name: Configuration of the dataset.
        image: Column of the images.
        label: Column of the classes. Defaults to no labels.
        upright: Turn images as their EXIF orientation says.
    """

    def __init__(
        self,
        path: str,
        split: str = "test",
        name: str | None = None,
        image: str = "image",
        label: str | None = None,
        upright: bool = False,
    ):
        self.path, self.split, self.config = path, split, name
        self.image, self.label, self.upright = image, label, upright

    @cached_property
    def table(self) -> Any:
        """Table of the dataset. Images are decoded one by one, because some may be damaged."""
        if not HUGGING_FACE:
            raise InputError(
                "HuggingFaceImages: needs the library datasets; pip install 'diffguard-pl[hf]'"
            )
        import datasets

        try:
            table = self._load()
            for column in (self.image, self.label):
                if column is not None:
                    choose("column", column, table.column_names)
            return table.cast_column(self.image, datasets.Image(decode=False))
        except Exception as error:  # of any kind: the library has many
            reason = " ".join(str(error).split())
            raise InputError(
                f"Hugging Face dataset {self.path}, split {self.split}: {reason}"
            ) from error

    def _load(self) -> Any:
        import datasets

        is_saved = any((Path(self.path) / file).exists() for file in SAVED_DATASET_FILES)
        if not is_saved:
            return datasets.load_dataset(self.path, self.config, split=self.split)
        saved = datasets.load_from_disk(self.path)
        return saved[self.split] if isinstance(saved, datasets.DatasetDict) else saved

    def __len__(self) -> int:
        return len(self.table)

    def path_of(self, index: int) -> str:
        """Return a name of an image that is unique in tables."""
        return f"{self.path}/{self.split}[{index}]"

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row = self.table[index]
        content = row[self.image]
        image = read_image(content["bytes"] or Path(content["path"]), self.upright)
        return image, -1 if self.label is None else int(row[self.label])
