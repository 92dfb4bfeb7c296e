"""Where images come from: OpenOOD image lists, folders, Hugging Face data sets. Each is a torch data set of (PIL image, label)."""

import ast
import json
import operator
import os
import re
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import Dataset

from diffguard_pl.errors import InputError

from .reading import read_image

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
)


class Entry(NamedTuple):
    """One image: its path below the root, and its class (-1: none)."""

    path: str
    label: int


class ImageFiles(Dataset, ABC):
    """Image files below a root folder. Nothing is read before it is asked for.

    Args:
        root: the folder; no image may lie outside it.
        upright: turn images as their EXIF orientation says (torchvision's ``ImageFolder`` does not).
        follow_links: allow links that lead out of the root.
    """

    def __init__(self, root: str, upright: bool = False, follow_links: bool = False):
        self.root, self.upright, self.follow_links = Path(root).expanduser(), upright, follow_links

    @cached_property
    @abstractmethod
    def entries(self) -> list[Entry]:
        """All images, in order."""

    def __len__(self) -> int:
        return len(self.entries)

    def files(self) -> set[str]:
        """Where the images are."""
        root = str(self._real_root)
        return {os.path.normpath(os.path.join(root, entry.path)) for entry in self.entries}

    def path_of(self, index: int) -> str:
        """Path of an image below the root."""
        return self.entries[index].path

    def label_of(self, index: int) -> int:
        """Class of an image, -1: none."""
        return self.entries[index].label

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.entries[index]
        file = self.root / path
        if not self.follow_links and not file.resolve().is_relative_to(self._real_root):
            raise InputError(
                f"is a link that leads out of {self.root}; set follow_links: true if that is meant"
            )
        return read_image(file, self.upright), label

    @cached_property
    def _real_root(self) -> Path:
        return self.root.resolve()

    def _refuse_linked_folders(self, entries: list[Entry]) -> list[Entry]:
        """A whole folder that is linked in from elsewhere is a matter of settings, not of single images."""
        if self.follow_links:
            return entries
        for folder in dict.fromkeys(str(PurePosixPath(entry.path).parent) for entry in entries):
            if not (self.root / folder).resolve().is_relative_to(self._real_root):
                raise InputError(
                    f"{self.root / folder} is a link that leads out of {self.root}; set follow_links: true if that is meant"
                )
        return entries


class ImageList(ImageFiles):
    """An OpenOOD image list: a line for each image, its path below the root and its label.

    The label is an integer, -1 for out-of-distribution, or a dictionary with the key ``label``. Paths may have spaces in them.
    Empty lines and those that begin with ``#`` are passed over.

    Args:
        file: path of the list.
        root: folder that its paths are relative to.
        upright: turn images as their EXIF orientation says.
        follow_links: allow links that lead out of the root.
    """

    def __init__(self, file: str, root: str, upright: bool = False, follow_links: bool = False):
        super().__init__(root, upright, follow_links)
        self.file = Path(file).expanduser()

    @cached_property
    def entries(self) -> list[Entry]:
        try:
            lines = self.file.read_text(encoding="utf-8-sig").split(
                "\n"
            )  # a name may hold what else splitlines() splits at
        except FileNotFoundError as error:
            raise InputError(f"image list {self.file}: no such file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"image list {self.file}: cannot be read ({error})") from error
        entries = [
            self._entry(line.strip(), number)
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not entries:
            raise InputError(f"image list {self.file}: names no image")
        return self._refuse_linked_folders(entries)

    def _entry(self, line: str, number: int) -> Entry:
        where = f"image list {self.file}, line {number}"
        found = re.fullmatch(r"(.+?)\s+(-?\d{1,9}|\{.*\})", line)
        if not found:
            raise InputError(f"{where}: expected 'path label', found {line[:80]!r}")
        path, label = found.groups()
        if (
            path.startswith(("/", "\\"))
            or re.match(r"[A-Za-z]:[\\/]", path)
            or ".." in re.split(r"[\\/]", path)
        ):
            raise InputError(f"{where}: {path[:80]!r} leads out of the root {self.root}; refused")
        return Entry(path, int(label) if not label.startswith("{") else _label_of(label, where))


def _label_of(dictionary: str, where: str) -> int:
    try:
        try:
            content = json.loads(dictionary)
        except ValueError:
            content = ast.literal_eval(dictionary)
        return operator.index(content["label"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(
            f"{where}: expected a dictionary with the key 'label' and a whole number, found {dictionary[:80]!r}"
        ) from error


class ImageDirectory(ImageFiles):
    """All images in a folder and its subfolders, by path, without labels. Hidden files and folders are passed over.

    Args:
        root: the folder.
        upright: turn images as their EXIF orientation says.
        follow_links: allow links that lead out of the root.
    """

    @cached_property
    def entries(self) -> list[Entry]:
        entries = [Entry(path, -1) for path in _images_below(self.root)]
        return self._refuse_linked_folders(entries)


class ClassFolders(ImageFiles):
    """A folder for each class, numbered by name as in torchvision's ``ImageFolder``, which counts hidden folders, too.

    Args:
        root: the folder that they are in.
        classes: names of the folders in the order of the classifier's classes; none: by name. Folders that are not among them are
            left out.
        upright: turn images as their EXIF orientation says.
        follow_links: allow links that lead out of the root.
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
        """Of the folders, in the order of their numbers."""
        return list(
            self.classes
            or sorted({PurePosixPath(path).parts[0] for path in self._paths if "/" in path})
        )

    @cached_property
    def _paths(self) -> list[str]:
        return _images_below(self.root)

    @cached_property
    def entries(self) -> list[Entry]:
        of = {path: PurePosixPath(path).parts[0] for path in self._paths if "/" in path}
        folders = {name: number for number, name in enumerate(self.names)}
        missing = sorted(folders.keys() - of.values(), key=folders.__getitem__)
        if missing or not of:
            raise InputError(
                f"class folders {self.root}: no images in {missing[0] if missing else 'any folder'}"
            )
        return self._refuse_linked_folders(
            [Entry(path, folders[name]) for path, name in of.items() if name in folders]
        )


def _images_below(root: Path) -> list[str]:
    if not root.is_dir():
        raise InputError(f"folder {root}: no such folder")
    paths, walked = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in walked:  # a link in a circle
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
            f"folder {root}: no images in it; looked for {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(paths)


class HuggingFaceImages(Dataset):
    """A data set of the Hugging Face ``datasets`` library (``pip install 'diffguard-pl[hf]'``).

    Args:
        path: name on the hub, or a folder that ``save_to_disk`` left.
        split: such as ``test``.
        name: configuration of the data set.
        image: column of the images.
        label: column of the classes; none: no labels.
        upright: turn images as their EXIF orientation says.
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
        self.name, self.split, self.config, self.image, self.label, self.upright = (
            path,
            split,
            name,
            image,
            label,
            upright,
        )

    @cached_property
    def table(self) -> Any:
        """The rows, images not decoded, so that a broken one harms no other."""
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                "HuggingFaceImages needs the library: pip install 'diffguard-pl[hf]'"
            ) from error
        try:
            if Path(self.name).is_dir() and any(
                (Path(self.name) / f).exists()
                for f in ("dataset_info.json", "dataset_dict.json", "state.json")
            ):
                table = datasets.load_from_disk(self.name)
                table = table[self.split] if isinstance(table, datasets.DatasetDict) else table
            else:
                table = datasets.load_dataset(self.name, self.config, split=self.split)
            missing = [
                column
                for column in (self.image, self.label)
                if column and column not in table.column_names
            ]
            if missing:
                raise InputError(
                    f"no column {missing[0]!r}; there are: {', '.join(table.column_names)}"
                )
            return table.cast_column(self.image, datasets.Image(decode=False))
        except Exception as error:  # the library has a class for every mishap
            raise InputError(
                f"Hugging Face data set {self.name}, split {self.split}: "
                + " ".join(str(error).split())
            ) from error

    def __len__(self) -> int:
        return len(self.table)

    def path_of(self, index: int) -> str:
        """What an image is called in tables."""
        return f"{self.name}/{self.split}[{index}]"

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row = self.table[index]
        content = row[self.image]
        image = read_image(content["bytes"] or Path(content["path"]), self.upright)
        return image, -1 if self.label is None else int(row[self.label])
