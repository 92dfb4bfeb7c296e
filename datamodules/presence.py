"""Presence of image files, sources of the missing ones, and downloads from OpenOOD."""

from collections.abc import Callable, Mapping
from hashlib import sha256
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


def repeated_files(source: Any, others: Mapping[str, Any]) -> dict[str, list[tuple[Path, Path]]]:
    """Find the files of other sources that a source holds as well, with the same content.

    Only files of equal size are opened, and only those that are equal in the middle, too, are read.

    Args:
        source: Source of images; one that is no list of files has none in common.
        others: Other sources by dataset name.

    Returns:
        For each dataset that has any, its files and the equal ones of ``source``.
    """
    files = [(None, file) for file in _files(source)]
    other_files = [(name, file) for name, other in others.items() for file in _files(other)]
    for key in (_size, _middle, _hash):
        keys = {file: _key_of(file, key) for _, file in {*files, *other_files}}
        common = {keys[file] for _, file in files} & {keys[file] for _, file in other_files}
        files = [entry for entry in files if keys[entry[1]] in common]
        other_files = [entry for entry in other_files if keys[entry[1]] in common]
    equal = {keys[file]: file for _, file in reversed(files)}
    found: dict[str, list[tuple[Path, Path]]] = {}
    for name, file in other_files:
        found.setdefault(str(name), []).append((file, equal[keys[file]]))
    return found


def _files(source: Any) -> list[Path]:
    """Return the present files of a source, in order."""
    if not isinstance(source, ImageFiles):
        return []
    try:
        files = [source.root / entry.path for entry in source.entries]
    except InputError:
        return []
    return [file for file in files if file.is_file()]


def _key_of(file: Path, key: Callable[[Path], Any]) -> Any:
    """Return the key of a file; of one that cannot be read its path, which no other file has."""
    try:
        return key(file)
    except OSError:
        return file


def _size(file: Path) -> int:
    return file.stat().st_size


def _middle(file: Path) -> bytes:
    """Return 64 bytes from the middle of a file, which tell compressed images apart."""
    with file.open("rb", buffering=0) as opened:
        opened.seek(_size(file) // 2)
        return opened.read(64)


def _hash(file: Path) -> bytes:
    return sha256(file.read_bytes()).digest()


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
        with (root / HASHES).open("a", encoding="utf-8") as hashes:
            hashes.write(f"{pooch.file_hash(file)}  {name}.zip\n")
    unzip(file, folder)
    file.unlink()


def _known_hashes(root: Path) -> dict[str, str]:
    """Read the hashes of earlier downloads by file name."""
    file = root / HASHES
    if not file.exists():
        return {}
    lines = [line.partition("  ") for line in file.read_text(encoding="utf-8").splitlines()]
    return {name: value for value, _, name in lines}
