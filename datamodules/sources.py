"""Sources of images: image lists of OpenOOD, folders, Hugging Face datasets.

Each is a torch dataset of pairs (PIL image, label).
"""

import ast
import json
import operator
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lightning_utilities.core.imports import RequirementCache
from PIL import Image
from torch.utils.data import Dataset

from diffguard_pl.errors import InputError, choose

from .listing import Listing, list_images
from .reading import read_image

HUGGING_FACE = RequirementCache("datasets")
SAVED_DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files of a folder that the ``datasets`` library has saved."""
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
"""Names of folders that hold the classes of one split, and are no classes."""


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
        # not splitlines(): a file name may contain other line separators
        lines = self._text().split("\n")
        entries = []
        for number, line in enumerate(map(str.strip, lines), 1):
            if line and not line.startswith("#"):
                entries.append(self._entry(line, number))
        if not entries:
            raise InputError(f"image list {self.file}: has no images")
        return self._without_linked_folders(entries)

    def _text(self) -> str:
        """Return the content of the list, or raise an `InputError`."""
        try:
            content = self.file.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"image list {self.file}: file not found") from error
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"image list {self.file}: cannot be read ({reason})") from error
        if b"\0" in content:
            raise InputError(
                f"image list {self.file}: is UTF-16 or not text; save it as UTF-8 (in PowerShell: "
                "Set-Content -Encoding utf8)"
            )
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise InputError(
                f"image list {self.file}, line {line}: is not UTF-8; save the list as UTF-8"
            ) from error

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
        if "\\" in path and not (self.root / path).exists():
            raise InputError(
                f"{where}: {path[:80]!r} not found; write / between folders, not a backslash"
            )
        return Entry(path, _label_of(label, where) if label.startswith("{") else int(label))


def _label_of(dictionary: str, where: str) -> int:
    """Return the label in a dictionary, which is written as JSON or as in Python."""
    try:
        try:
            content = json.loads(dictionary)
        except ValueError:
            content = ast.literal_eval(dictionary)
        label = operator.index(content["label"])
        if abs(label) >= 10**9:  # as many digits as a plain label may have
            raise ValueError("too large")
        return label
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(
            f"{where}: must be a dictionary with an integer 'label', not {dictionary[:80]!r}"
        ) from error


class ImageDirectory(ImageFiles):
    """All images in a folder and its subfolders, by path, without labels.

    Images are known by their suffixes, see :mod:`~diffguard_pl.datamodules.formats`. Hidden files
    and folders are ignored.

    Args:
        root: Root folder.
        upright: Turn images as their EXIF orientation says.
        follow_links: Allow links that lead out of the root.
    """

    @cached_property
    def entries(self) -> list[Entry]:
        entries = [Entry(path, -1) for path in list_images(self.root).images]
        return self._without_linked_folders(entries)


class ClassFolders(ImageFiles):
    """One folder per class, numbered by name as in torchvision's ``ImageFolder``.

    Hidden folders are ignored, while ``ImageFolder`` counts them.

    Args:
        root: Folder of the class folders.
        classes: Names of the folders in the order of the classifier's classes. All other folders
            are ignored, and a class may have no folder or no images. Defaults to all folders by
            name, each of which must have images.
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
        repeated = [name for name, count in Counter(classes).items() if count > 1]
        if repeated:
            raise InputError(
                f"class folders {root}: classes: {repeated[0]!r} is in it twice; give each class "
                "one folder"
            )
        self.classes = classes

    @cached_property
    def names(self) -> list[str]:
        """Names of the class folders, in the order of their numbers."""
        if self.classes:
            return list(self.classes)
        names = [path for path in self._listing.folders if "/" not in path]
        _warn_of_names(self.root, names)
        return names

    @cached_property
    def _listing(self) -> Listing:
        return list_images(self.root)

    @cached_property
    def entries(self) -> list[Entry]:
        numbers = {name: number for number, name in enumerate(self.names)}
        entries = []
        for path in self._listing.images:
            folder, separator, _ = path.partition("/")
            if separator and folder in numbers:  # images beside the folders have no class
                entries.append(Entry(path, numbers[folder]))
        self._check_images_of_classes(entries)
        self._warn_of_left_out(entries)
        _warn_of_depth(self.root, self.names, entries)
        return self._without_linked_folders(entries)

    def _check_images_of_classes(self, entries: list[Entry]) -> None:
        """Raise an `InputError` if there are no images, or a folder has none and shifts labels."""
        with_images = {entry.label for entry in entries}
        if not with_images:
            raise InputError(
                f"class folders {self.root}: no images in any folder of a class; check root, or "
                "the names in classes"
            )
        empty = [name for number, name in enumerate(self.names) if number not in with_images]
        if empty and not self.classes:
            raise InputError(
                f"class folders {self.root}: no images in {empty[0]}, which would be class "
                f"{self.names.index(empty[0])}; remove the folder, or set classes to the "
                "classifier's classes, some of which may be without images"
            )

    def _warn_of_left_out(self, entries: list[Entry]) -> None:
        """Warn of images that have no class, perhaps by a misspelt name."""
        labels = {entry.label for entry in entries}
        unused = [name for number, name in enumerate(self.names) if number not in labels]
        used = {entry.path for entry in entries}
        left_out = [path for path in self._listing.images if path not in used]
        # folders that are not in a list of classes are left out on purpose, unless a class has none
        if not unused:
            left_out = [path for path in left_out if "/" not in path]
        if left_out:
            without = f", while class {unused[0]} has no images" if unused else ""
            warnings.warn(
                f"class folders {self.root}: {len(left_out)} images are in no folder of a class, "
                f"such as {left_out[0]}{without}; check the names of the folders",
                stacklevel=2,
            )


def _warn_of_names(root: Path, names: list[str]) -> None:
    """Warn of class folders whose numbers do not count up, or that are not classes."""
    parts = [re.fullmatch(r"(\D*)(\d+)(\D*)", name) for name in names]
    numbers = [int(found[2]) for found in parts if found]
    same_text = len({(found[1], found[3]) for found in parts if found}) == 1
    if len(numbers) == len(names) and same_text and numbers != sorted(numbers):
        place = next(i for i in range(1, len(names)) if numbers[i] < numbers[i - 1])
        warnings.warn(
            f"class folders {root}: are numbered as text, so that {names[place - 1]} is class "
            f"{place - 1} and {names[place]} is class {place}; if the classifier counts otherwise, "
            "set classes to the names in its order",
            stacklevel=2,
        )
    if len(names) > 1 and {name.lower() for name in names} <= SPLITS:
        warnings.warn(
            f"class folders {root}: {', '.join(names)} are taken for classes, and look like "
            "splits; set root to one of them",
            stacklevel=2,
        )


def _warn_of_depth(root: Path, names: list[str], entries: list[Entry]) -> None:
    """Warn of a single class folder whose images lie in further folders."""
    folders = {PurePosixPath(entry.path).parts[1:-1][:1] for entry in entries}
    if len(names) == 1 and () not in folders:
        warnings.warn(
            f"class folders {root}: {names[0]} is the only class, and its images lie in "
            f"{len(folders)} folders below it; if these are the classes, set root to "
            f"{root / names[0]}",
            stacklevel=2,
        )


class HuggingFaceImages(Dataset):
    """A dataset of the Hugging Face ``datasets`` library (``pip install datasets``).

    Args:
        path: Name on the hub, or a folder written by ``save_to_disk``.
        split: Split of the dataset. Defaults to ``test``, and to nothing for a single dataset that
            was saved without splits.
        name: Configuration of the dataset.
        image: Column of the images.
        label: Column of the classes, -1 where unknown. Defaults to no labels.
        upright: Turn images as their EXIF orientation says.
    """

    def __init__(
        self,
        path: str,
        split: str | None = None,
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
            raise InputError("HuggingFaceImages: needs the library datasets; pip install datasets")
        import datasets

        where = f"Hugging Face dataset {self.path}, split {self.split or 'test'}"
        try:
            table = self._load()
            for column in (self.image, self.label):
                if column is not None:
                    choose("column", column, table.column_names)
            table = table.cast_column(self.image, datasets.Image(decode=False))
            count = len(table)
        except IndexError:  # the library cannot load what it has saved of a table without rows
            count = 0
        except Exception as error:  # of any kind: the library has many
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(f"{where}: {reason}") from error
        if count == 0:
            raise InputError(f"{where}: has no images; choose another split, or save it again")
        return table

    def _load(self) -> Any:
        import datasets

        is_saved = any((Path(self.path) / file).exists() for file in SAVED_DATASET_FILES)
        if not is_saved:
            return datasets.load_dataset(self.path, self.config, split=self.split or "test")
        saved = datasets.load_from_disk(self.path)
        if isinstance(saved, datasets.DatasetDict):
            split = self.split or "test"
            choose("split", split, list(saved))
            return saved[split]
        if self.split not in (None, saved.split):
            of_split = "" if saved.split is None else f" (split {saved.split})"
            raise InputError(
                f"is a single dataset{of_split} that was saved without others; remove split"
            )
        return saved

    def __len__(self) -> int:
        return len(self.table)

    def path_of(self, index: int) -> str:
        """Return a name of an image that is unique in tables."""
        return f"{self.path}/{self.split or 'test'}[{index}]"

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        row = self.table[index]
        content = row[self.image] or {}
        if not (content.get("bytes") or content.get("path")):
            raise InputError(
                f"the column {self.image!r} has no image in row {index}; remove the row"
            )
        image = read_image(content.get("bytes") or Path(content["path"]), self.upright)
        return image, -1 if self.label is None else row[self.label]
