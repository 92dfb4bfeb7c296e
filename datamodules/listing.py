"""Listing of the image files below a folder."""

import os
from pathlib import Path
from typing import NamedTuple

from diffguard_pl.errors import InputError

from .formats import READABLE_SUFFIXES, has_image_name

SYSTEM_FOLDERS = {
    "#recycle",
    "$RECYCLE.BIN",
    "@eaDir",
    "System Volume Information",
    "__MACOSX",
    "lost+found",
}
"""Folders that a file system, a disk station or an archive adds, with thumbnails or deleted images.

They are treated as hidden: as a class, one would shift the labels of all others.
"""


class Listing(NamedTuple):
    """Files below a folder, as paths relative to it, in order.

    Attributes:
        images: Image files by their suffixes. Formats that cannot be read, and folders, are among
            them, so that they have a reason in the results and are not passed over in silence.
        others: Files that are passed over: other suffixes and hidden files. A hidden folder, which
            is not entered, is one of them and ends in ``/``.
        folders: Folders that are not hidden.
    """

    images: list[str]
    others: list[str]
    folders: list[str]


def list_files(root: Path) -> Listing:
    """List the files below a folder.

    Raises:
        InputError: The folder is missing or cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"folder {root}: not found")
    listing, walked = Listing([], [], []), set()

    def note_unreadable(error: OSError) -> None:
        # os.walk would pass over it in silence; as an image it has a reason in the results
        folder = Path(error.filename)
        if folder == root:
            raise InputError(
                f"folder {root}: cannot be read ({error.strerror}); allow it"
            ) from error
        listing.images.append(folder.relative_to(root).as_posix())

    for folder, subfolders, files in os.walk(root, onerror=note_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in walked:  # a link to a folder above it
            subfolders.clear()
            continue
        walked.add(real)
        below = Path(folder).relative_to(root)

        # hidden folders are not entered: snapshots of file systems may hold all images again
        hidden = [name for name in subfolders if name.startswith(".") or name in SYSTEM_FOLDERS]
        listing.others.extend(f"{(below / name).as_posix()}/" for name in hidden)
        subfolders[:] = [name for name in subfolders if name not in hidden]
        listing.folders.extend((below / name).as_posix() for name in subfolders)

        for name in files:
            is_image = has_image_name(name) and not name.startswith(".")
            paths = listing.images if is_image else listing.others
            paths.append((below / name).as_posix())
    return Listing(*map(sorted, listing))


def list_images(root: Path) -> Listing:
    """List the files below a folder, at least one of which is an image.

    Raises:
        InputError: The folder cannot be read, or has no images.
    """
    listing = list_files(root)
    if not listing.images:
        raise no_images(root)
    return listing


def no_images(folder: str | Path) -> InputError:
    """Return the error of a folder without images."""
    suffixes = ", ".join(sorted(READABLE_SUFFIXES))
    return InputError(f"folder {folder}: has no images; their names must end in {suffixes}")
