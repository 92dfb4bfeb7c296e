"""Presence of image files, sources of the missing ones, and downloads from OpenOOD."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffguard_pl.checkpoints.download import fetch, google_drive, unzip
from diffguard_pl.errors import InputError

from .openood import IMAGE_LISTS, PUBLISHED, PublishedList, PublishedSet
from .sources import ImageFiles

HASHES = "downloads.sha256"


class Presence(NamedTuple):
    """Which images of a source are present.

    Attributes:
        listed: Number of images of the source; 0 if unknown.
        missing: Paths of the missing ones, below the root of the source.
        problem: Why the images are unknown, or empty.
    """

    listed: int
    missing: list[str]
    problem: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every image is present."""
        return not self.missing and not self.problem


def presence(source: Any) -> Presence:
    """Look for the image files of a source, without opening them."""
    try:
        if not isinstance(source, ImageFiles):
            return Presence(len(source), [])
        paths = [entry.path for entry in source.entries]
    except InputError as error:
        return Presence(0, [], str(error))
    missing = [path for path in paths if not (source.root / path).is_file()]
    return Presence(len(paths), missing)


def where_to_get(source: Any, config: str) -> str:
    """Say in one line where the images of a source come from.

    Args:
        source: Source of images.
        config: Arguments of ``diffguard-pl data`` that select it.
    """
    if not isinstance(source, PublishedList):
        if isinstance(source, ImageFiles):
            return f"put the images into {source.root}"
        return "see the documentation of the dataset"
    downloads = [] if source.file.exists() else [("image lists", IMAGE_LISTS)]
    if not source.elsewhere:
        downloads.append((source.archive, PUBLISHED[source.archive]))
    if not downloads:
        return f"get it from {source.elsewhere} -> {source.root / source.archive}"
    by_hand = [
        f"{name}: {browser_link(published)} -> {source.data_root / published.folder}"
        for name, published in downloads
    ]
    return f"get it: diffguard-pl data prepare {config}; or by hand, {'; '.join(by_hand)}"


def browser_link(published: PublishedSet) -> str:
    """Return the URL of the page on which a person can download an archive."""
    return f"https://drive.google.com/file/d/{published.drive}/view"


def download_published(sources: Mapping[str, Any]) -> None:
    """Download the missing files that OpenOOD publishes: image lists first, then each archive.

    Raises:
        InputError: OpenOOD publishes none of them, or a download failed.
    """
    published = [source for source in sources.values() if isinstance(source, PublishedList)]
    if not published:
        raise InputError(
            "data: OpenOOD publishes none of these datasets; `diffguard-pl data check` says what "
            "each needs"
        )
    if any(not source.file.exists() for source in published):
        _download("benchmark_imglist", IMAGE_LISTS, published[0].data_root)
    roots = {
        source.archive: source.data_root
        for source in published
        if not source.elsewhere and not presence(source).is_complete
    }
    for archive, root in roots.items():
        _download(archive, PUBLISHED[archive], root)


def _download(name: str, published: PublishedSet, root: Path) -> None:
    """Fetch an archive, unpack it as OpenOOD does, and remove it.

    OpenOOD publishes no hashes. The hash of the first download is kept in ``downloads.sha256``, in
    the format of ``sha256sum``, so that a group can pin its data. Checksums inside the archive are
    always verified.
    """
    import pooch

    folder = root / published.folder
    print(f"{name}: {browser_link(published)} -> {folder}", flush=True)
    known = _known_hashes(root).get(f"{name}.zip")
    file = fetch(google_drive(published.drive), folder, f"{name}.zip", sha256=known)
    if known is None:
        with (root / HASHES).open("a") as hashes:
            hashes.write(f"{pooch.file_hash(file)}  {name}.zip\n")
    unzip(file, folder)
    file.unlink()


def _known_hashes(root: Path) -> dict[str, str]:
    """Read the hashes of earlier downloads by file name."""
    file = root / HASHES
    if not file.exists():
        return {}
    lines = [line.partition("  ") for line in file.read_text().splitlines()]
    return {name: value for value, _, name in lines}
