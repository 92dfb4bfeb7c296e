"""Files from the network: fetched once, resumed where they broke off, checked, unpacked."""

import json
import os
import secrets
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pooch
import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..errors import InputError

TRIES = 4
"""Connections that may bring nothing new, one after the other, before a download is given up."""
PAUSE = 0.5
"""Seconds to wait after a connection that brought something; twice as long after each that did not."""
TIMEOUT = (15, 60)
"""Seconds to connect, and between two pieces of the answer."""
PIECE = 2**16
LARGE = 100 * 2**20
"""Bytes of an archive from which on unpacking shows its progress."""
DRIVE = "https://drive.usercontent.google.com/download?id="

pooch.get_logger().setLevel("WARNING")  # it would tell users to put a hash into their code


def cache_folder() -> Path:
    """Where downloads are kept: the environment variable ``DIFFGUARD_CACHE``, or this system's folder for caches."""
    return Path(os.environ.get("DIFFGUARD_CACHE") or pooch.os_cache("diffguard_pl")).expanduser()


def google_drive(file_id: str) -> str:
    """The URL that a public file on Google Drive can be fetched from."""
    return f"{DRIVE}{file_id}&export=download&confirm=t"


# -------------------------------------------------------------------------------------------------------------- download


def fetch(
    url: str,
    folder: str | Path,
    filename: str,
    size: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """A file from the network. One that is in the folder already is taken as it is, without asking the network.

    What arrives goes to ``<filename>.part``, stays there if the download breaks off, and is continued the next time. Of several
    processes that want the same file one downloads it and the others wait.

    Args:
        url: http or https; see :func:`google_drive`.
        folder: where the file is put; made if need be.
        filename: its name there.
        size: bytes that it has to have, if known.
        sha256: of its content, if known; checked once, after the download.
        progress: show bytes, rate and time left on stderr; one line where that is not a terminal.

    Raises:
        InputError: no network, no such file, a web page in its place, another size or hash, or a folder that cannot be written.
    """
    path = Path(folder).expanduser() / filename
    part = path.with_name(f"{filename}.part")

    def download(url: str, output: str, _: object) -> None:
        _download(url, part, size, progress)
        part.replace(output)
        _note(part).unlink(missing_ok=True)

    try:
        if _is_there(path, size):
            return path
        with locked(path, progress):
            if not _is_there(path, size):  # it may be, after the wait
                pooch.retrieve(
                    url,
                    sha256 and f"sha256:{sha256.lower()}",
                    filename,
                    path.parent,
                    downloader=download,
                )
    except InputError:
        raise
    except ValueError as error:  # pooch's, of a wrong hash, which it names; it has removed the file
        what = " ".join(str(error).partition("Deleted")[0].split()).rstrip(".")
        raise InputError(
            f"{url}: {what}; removed: download it again, if that stays, it was replaced"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): free space there or choose another folder (DIFFGUARD_CACHE for "
            f"the cache); what has arrived stays in {part.name} and is continued"
        ) from error
    return path


def _is_there(path: Path, size: int | None) -> bool:
    if not path.is_file():
        return False
    found = path.stat().st_size
    if size is not None and found != size:
        raise InputError(
            f"{path} has {found:,} bytes, expected {size:,}; remove it, and it is downloaded again"
        )
    return True


@contextmanager
def locked(path: Path, progress: bool = True) -> Iterator[None]:
    """One process at a time makes ``path``; the others wait here, and then find it made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        if progress:
            print(f"waiting for another process to finish {path.name}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(url: str, part: Path, size: int | None, progress: bool) -> None:
    """Bring ``part`` to its full length, over as many connections as that takes."""
    path = part.with_suffix("")
    longest, failures = _length(part), 0
    with _shown(f"downloading {path.name}", longest, size, progress) as show:
        while True:
            try:
                return _append(url, part, size, show)
            except requests.RequestException as error:
                failures = failures + 1 if _length(part) <= longest else 0
                longest = max(longest, _length(part))
                if failures == TRIES:
                    raise InputError(
                        f"{url} could not be downloaded ({_reason(error)}): check the network and try again, it continues where it "
                        f"broke off; or put the file there by hand: {path}"
                    ) from error
                time.sleep(PAUSE * 2**failures)


def _append(
    url: str, part: Path, size: int | None, show: Callable[[int, int | None], None]
) -> None:
    """Add to ``part`` what one connection brings; a RequestException says that it was not all."""
    have, before = _length(part), _offer_before(part)
    if have and have == (before["total"] or size):
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        offer, partial = _offer(response), response.status_code == 206
        continues = before in (offer, NO_OFFER) and response.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {have}-")
        if response.status_code == 416 or (partial and not continues):
            _discard(part)
            raise requests.ConnectionError("the file there is another than when the download began")
        _refuse(response, url, part.with_suffix(""))
        _check_size(url, part, offer["total"], size)
        _note(part).write_text(json.dumps(offer))
        have = have if partial else 0
        with part.open("ab" if partial else "wb") as file:
            for piece in response.iter_content(PIECE):
                file.write(piece)
                have += len(piece)
                show(have, offer["total"] or size)
    total = offer["total"] or size or have
    if have < total:
        raise requests.ConnectionError(f"it ended after {have:,} of {total:,} bytes")
    _check_size(url, part, have, total)


NO_OFFER = {"total": None, "version": None}


def _offer(response: requests.Response) -> dict:
    """How many bytes the file has, and how the server marks this version of it."""
    headers = response.headers
    total = headers.get(
        "Content-Range" if response.status_code == 206 else "Content-Length", ""
    ).rpartition("/")[2]
    return {
        "total": int(total) if total.isdigit() else None,
        "version": headers.get("ETag") or headers.get("Last-Modified"),
    }


def _offer_before(part: Path) -> dict:
    """The offer that ``part`` was begun with."""
    try:
        return json.loads(_note(part).read_text())
    except (OSError, ValueError):
        return NO_OFFER


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _check_size(url: str, part: Path, found: int | None, expected: int | None) -> None:
    if None not in (found, expected) and found != expected:
        _discard(part)
        raise InputError(
            f"{url}: it has {found:,} bytes, expected {expected:,}; removed: download it again, if that stays, it was replaced"
        )


def _refuse(response: requests.Response, url: str, path: Path) -> None:
    """Raise unless the answer is the file: an InputError where asking again is of no use."""
    status = response.status_code
    if status == 429 or status >= 500:
        raise requests.HTTPError(f"the server answers {status} {response.reason}")
    if not response.ok:
        what = f"the server answers {status} {response.reason}"
        raise InputError(f"{url}: {what}; check the address, or put the file there by hand: {path}")
    if "text/html" not in response.headers.get("Content-Type", "") or path.suffix in (
        ".html",
        ".htm",
    ):
        return
    if url.startswith(DRIVE):
        page = f"https://drive.google.com/file/d/{url.removeprefix(DRIVE).partition('&')[0]}/view"
        what = "Google Drive sends a web page in place of the file, as its quota for today is used up or it is not public"
        raise InputError(f"{url}: {what}; open {page} in a browser, and put the file there: {path}")
    raise InputError(
        f"{url}: the server sends a web page in place of a file; open it in a browser, and put the file there: {path}"
    )


def _reason(error: BaseException) -> str:
    """What is at the bottom of an error, in a few words."""
    while below := error.__cause__ or error.__context__:
        error = below
    return " ".join(str(getattr(error, "strerror", None) or error).split())


@contextmanager
def _shown(
    what: str, done: int, total: int | None, progress: bool
) -> Iterator[Callable[[int, int | None], None]]:
    """A function that is told the bytes done and the bytes in all, and shows them."""
    console = Console(stderr=True)
    if not progress or not console.is_terminal:
        if progress:
            print(f"{what}{f' ({decimal(total)})' if total else ''}", file=sys.stderr)
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, completed=done, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# ---------------------------------------------------------------------------------------------------------------- unpack


def unzip(
    archive: str | Path,
    folder: str | Path,
    members: Collection[str] | None = None,
    progress: bool = True,
) -> list[Path]:
    """Unpack an archive; each file appears under its name only when it is whole and its CRC is right.

    Args:
        archive: a .zip.
        folder: where to.
        members: names of those to unpack; none: all.
        progress: show it, if the archive is large.

    Returns:
        The files, in the archive's order.

    Raises:
        InputError: damaged, encrypted, or with a member that would leave the folder (then nothing is unpacked); or a folder that
            cannot be written.
    """
    archive, folder = Path(archive).expanduser(), Path(folder).expanduser()
    done, targets = 0, []
    try:
        with _opened(archive) as file:
            infos = [
                info
                for info in file.infolist()
                if not info.is_dir() and (members is None or info.filename in members)
            ]
            targets = [_place(archive, info, folder) for info in infos]
            total = sum(info.file_size for info in infos)
            with _shown(f"unpacking {archive.name}", 0, total, progress and total >= LARGE) as show:
                for info, target in zip(infos, targets, strict=True):
                    with _whole(target) as output, file.open(info) as source:
                        while piece := source.read(PIECE):
                            output.write(piece)
                            done += len(piece)
                            show(done, total)
    except OSError as error:
        raise InputError(
            f"{archive} cannot be unpacked into {folder} ({error.strerror or error}): free space or choose another"
        ) from error
    return targets


def members(archive: str | Path) -> list[str]:
    """The names of the files in an archive; an InputError as for :func:`unzip`."""
    with _opened(Path(archive)) as file:
        return [
            info.filename
            for info in file.infolist()
            if not info.is_dir() and _place(Path(archive), info)
        ]


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as file:
            yield file
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"archive {archive}: damaged, encrypted or no zip file ({error}); remove it and get it again"
        ) from error


def _place(archive: Path, info: zipfile.ZipInfo, folder: Path = Path()) -> Path:
    """Where a member belongs."""
    name = PurePosixPath(info.filename.replace("\\", "/"))
    place = folder / name
    link = stat.S_ISLNK(info.external_attr >> 16)
    if (
        link
        or name.is_absolute()
        or ".." in name.parts
        or not place.resolve().is_relative_to(folder.resolve())
    ):
        raise InputError(
            f"archive {archive}: refused, its member {info.filename!r} would leave the folder; do not trust it"
        )
    return place


@contextmanager
def _whole(target: Path) -> Iterator:
    """A file to write that takes its name when it is written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as output:
            yield output
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
