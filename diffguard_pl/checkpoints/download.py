"""Downloads: each file is fetched once, resumed after an interruption, verified and unpacked.

pooch, requests and rich are imported where they are used, so that importing this module is cheap.
"""

import json
import os
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import TYPE_CHECKING, BinaryIO

from ..errors import InputError
from ..runs.lock import locked

if TYPE_CHECKING:
    import requests

MAX_FAILURES = 4
"""Number of consecutive connections without new data after which a download is given up."""
PAUSE = 0.5
"""Seconds before the next connection; doubled after each failure."""
TIMEOUT = (15, 60)
"""Seconds to wait for a connection, and for the next bytes of a response."""
CHUNK_SIZE = 2**16
"""Largest number of bytes that are read and written at a time."""
MIN_RATE, RATE_WINDOW = 1000, 60
"""Bytes per second that a connection must give on average over this many seconds."""
PROGRESS_FROM = 100 * 2**20
"""Unpacked size in bytes from which on unpacking shows its progress."""
GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?id="

ShowProgress = Callable[[int, int | None], None]
"""Function of the number of bytes done and the total number of bytes, if known."""


def cache_folder() -> Path:
    """Return the folder of downloads: ``DIFFGUARD_CACHE``, or the system's cache folder."""
    if folder := os.environ.get("DIFFGUARD_CACHE"):
        return Path(folder).expanduser()

    import pooch

    return Path(pooch.os_cache("diffguard_pl"))


def google_drive(file_id: str) -> str:
    """Return the download URL of a public file on Google Drive."""
    return f"{GOOGLE_DRIVE}{file_id}&export=download&confirm=t"


# ---- download


def fetch(
    url: str,
    folder: str | Path,
    filename: str,
    size: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Download a file, unless it is in the folder already; then the network is not used.

    Data goes to ``<filename>.part``, which stays if the download is interrupted and is resumed the
    next time. If several processes need the same file, one downloads it and the others wait.

    Args:
        url: An ``http(s)://`` URL; see also :func:`google_drive`.
        folder: Folder of the file; created if it does not exist.
        filename: Name of the file in the folder.
        size: Expected size in bytes, if known.
        sha256: Expected hash of the content, if known; verified once, after the download.
        progress: Whether to show bytes, rate and remaining time on stderr; one line if stderr is
            not a terminal. Defaults to True.

    Returns:
        Path of the file.

    Raises:
        InputError: The file cannot be downloaded or written, the server sends a web page instead,
            or size or hash differ.
    """
    path = Path(folder).expanduser() / filename
    part = path.with_name(f"{filename}.part")
    try:
        if _is_complete(path, size):
            return path
        with locked(path, progress):
            # another process may have downloaded the file while this one waited
            if not _is_complete(path, size):
                _download(url, part, size, progress)
                _check_hash(url, part, sha256)
                part.replace(path)
                _state_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); free space, or choose another "
            f"folder (DIFFGUARD_CACHE for the cache); {part.name} is kept and resumed"
        ) from error
    return path


def _is_complete(path: Path, size: int | None) -> bool:
    """Return whether a file exists; raise if its size is not the expected one."""
    if not path.is_file():
        return False
    found = path.stat().st_size
    if size is not None and found != size:
        raise InputError(
            f"{path}: has {found:,} bytes, expected {size:,}; remove it to download it again"
        )
    return True


def _download(url: str, part: Path, size: int | None, progress: bool) -> None:
    """Complete ``part``, over as many connections as needed."""
    import requests

    path = part.with_suffix("")
    longest, failures = _length(part), 0
    with _progress_bar(f"downloading {path.name}", longest, size, progress) as show:
        while True:
            try:
                return _append(url, part, size, show)
            except requests.RequestException as error:
                # Beyond the longest part so far, a connection must give something; a slow one more.
                is_slow = isinstance(error, requests.Timeout)
                needed = MIN_RATE * RATE_WINDOW if is_slow else 1
                failures = 0 if _length(part) - longest >= needed else failures + 1
                longest = max(longest, _length(part))
                if failures == MAX_FAILURES:
                    raise InputError(
                        f"{url}: cannot be downloaded ({_root_cause(error)}); check the network "
                        f"and try again, the download is resumed; or save the file as {path}"
                    ) from error
                time.sleep(PAUSE * 2**failures)


def _append(url: str, part: Path, size: int | None, show: ShowProgress) -> None:
    """Append the data of one connection to ``part``.

    Raises:
        requests.RequestException: ``part`` is still incomplete; another connection may help.
        InputError: Another connection would not help.
    """
    import requests

    # Nothing is left to do for a complete part whose process ended before renaming it.
    done, begun = _length(part), _read_state(part)
    if done and done == (begun["total"] or size):
        return

    # Ask for the rest of the file; the server may answer with the rest (206) or with all of it.
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        # The rest only counts if it starts where the part ends and the file has not changed.
        state, is_rest = _server_state(response), response.status_code == 206
        starts_at_end = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        fits = begun in (state, UNKNOWN_STATE) and starts_at_end
        if response.status_code == 416 or (is_rest and not fits):
            _discard(part)
            raise requests.ConnectionError("the file has changed since the download began")
        _check_response(response, url, part.with_suffix(""))
        _check_size(url, part, state["total"], size)

        # Record the file's version before the first byte, so that the part can be resumed.
        _state_file(part).write_text(json.dumps(state), encoding="utf-8")
        if not is_rest:
            done = 0
        with part.open("ab" if is_rest else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                done += len(chunk)
                show(done, state["total"] or size)

    total = state["total"] or size or done
    if done < total:
        raise requests.ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
    _check_size(url, part, done, total)


def _chunks(response: "requests.Response") -> Iterator[bytes]:
    """Yield the data of a response as it arrives, so that none is lost if the connection ends.

    Raises:
        requests.RequestException: The connection ends early, or stalls.
    """
    import requests
    import urllib3

    begin, received = monotonic(), 0
    try:
        while chunk := response.raw.read1(CHUNK_SIZE, decode_content=True):
            yield chunk

            # Compare the average rate of each window with the lowest one.
            received += len(chunk)
            seconds = monotonic() - begin
            if seconds >= RATE_WINDOW:
                if received < MIN_RATE * seconds:
                    raise requests.Timeout(
                        f"the server sends fewer than {MIN_RATE:,} bytes a second"
                    )
                begin, received = monotonic(), 0
    except urllib3.exceptions.TimeoutError as error:
        raise requests.Timeout(error) from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error


# A server's file is identified by its total size in bytes and its version (ETag or date).
UNKNOWN_STATE = {"total": None, "version": None}


def _server_state(response: "requests.Response") -> dict:
    """Return total size and version of the file that a response belongs to."""
    headers = response.headers
    name = "Content-Range" if response.status_code == 206 else "Content-Length"
    total = headers.get(name, "").rpartition("/")[2]
    return {
        "total": int(total) if total.isdigit() else None,
        "version": headers.get("ETag") or headers.get("Last-Modified"),
    }


def _read_state(part: Path) -> dict:
    """Return total size and version of the file when the download of ``part`` began."""
    try:
        state = json.loads(_state_file(part).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return UNKNOWN_STATE
    # the file may have been damaged, or written by another program
    is_state = (
        isinstance(state, dict)
        and state.keys() == UNKNOWN_STATE.keys()
        and type(state["total"]) in (int, type(None))
        and type(state["version"]) in (str, type(None))
    )
    return state if is_state else UNKNOWN_STATE


def _state_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    """Delete an incomplete download."""
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _check_size(url: str, part: Path, found: int | None, expected: int | None) -> None:
    """Discard ``part`` and raise if two known sizes differ."""
    if found is None or expected is None or found == expected:
        return
    _discard(part)
    raise InputError(
        f"{url}: has {found:,} bytes, expected {expected:,}; the file was removed, download it "
        "again, or check the URL if the error stays"
    )


def _check_hash(url: str, part: Path, expected: str | None) -> None:
    """Discard ``part`` and raise if its hash is not the expected one."""
    if expected is None:
        return
    import pooch

    found = pooch.file_hash(part)
    if found != expected.lower():
        _discard(part)
        raise InputError(
            f"{url}: has the SHA-256 {found}, expected {expected.lower()}; the file was removed, "
            "download it again, or check the URL if the error stays"
        )


def _check_response(response: "requests.Response", url: str, path: Path) -> None:
    """Raise unless a response holds the file: an InputError if another attempt would not help."""
    import requests

    status = f"{response.status_code} {response.reason}"
    if response.status_code == 429 or response.status_code >= 500:
        raise requests.HTTPError(f"the server answers {status}")
    if not response.ok:
        raise InputError(
            f"{url}: the server answers {status}; check the URL, or save the file as {path}"
        )

    # a login or quota page instead of the file
    is_page = "text/html" in response.headers.get("Content-Type", "")
    if not is_page or path.suffix in (".html", ".htm"):
        return
    if url.startswith(GOOGLE_DRIVE):
        file_id = url.removeprefix(GOOGLE_DRIVE).partition("&")[0]
        raise InputError(
            f"{url}: Google Drive sends a web page instead of the file (not public, or its daily "
            f"quota is used up); open https://drive.google.com/file/d/{file_id}/view in a browser "
            f"and save the file as {path}"
        )
    raise InputError(
        f"{url}: the server sends a web page instead of the file; open it in a browser and save "
        f"the file as {path}"
    )


def _root_cause(error: BaseException) -> str:
    """Return the message of the innermost error."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return " ".join(str(getattr(error, "strerror", None) or error).split())


@contextmanager
def _progress_bar(
    description: str, done: int, total: int | None, enabled: bool
) -> Iterator[ShowProgress]:
    """Show a progress bar on stderr, or a single line if stderr is not a terminal.

    Args:
        description: Text before the bar.
        done: Number of bytes done at the start.
        total: Total number of bytes, if known.
        enabled: Whether to show anything.
    """
    from rich.console import Console
    from rich.filesize import decimal

    console = Console(stderr=True)
    if not enabled or not console.is_terminal:
        if enabled:
            print(f"{description}{f' ({decimal(total)})' if total else ''}", file=sys.stderr)
        yield lambda done, total: None
        return

    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, completed=done, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# ---- unpack


def unzip(
    archive: str | Path,
    folder: str | Path,
    members: Collection[str] | None = None,
    progress: bool = True,
) -> list[Path]:
    """Unpack an archive; each file gets its name only once it is complete and its CRC is right.

    Args:
        archive: A .zip file.
        folder: Folder to unpack into.
        members: Names of the members to unpack. Defaults to all.
        progress: Whether to show the progress, if the archive is large. Defaults to True.

    Returns:
        Paths of the unpacked files, in the archive's order.

    Raises:
        InputError: The archive is damaged or encrypted, a member would leave the folder (then
            nothing is unpacked), or the folder cannot be written.
    """
    archive, folder = Path(archive).expanduser(), Path(folder).expanduser()
    done, targets = 0, []
    try:
        with _open_archive(archive) as file:
            infos = [info for info in file.infolist() if not info.is_dir()]
            if members is not None:
                infos = [info for info in infos if info.filename in members]

            # all members are checked before the first one is written
            targets = [_member_path(archive, info, folder) for info in infos]

            total = sum(info.file_size for info in infos)
            show_progress = progress and total >= PROGRESS_FROM
            bar = _progress_bar(f"unpacking {archive.name}", 0, total, show_progress)
            with locked(folder / archive.name, progress), bar as show:
                for info, target in zip(infos, targets, strict=True):
                    with _atomic_file(target) as output, file.open(info) as source:
                        while chunk := source.read(CHUNK_SIZE):
                            output.write(chunk)
                            done += len(chunk)
                            show(done, total)
    except OSError as error:
        raise InputError(
            f"archive {archive}: cannot be unpacked into {folder} ({error.strerror or error}); "
            "free space or choose another folder"
        ) from error
    return targets


def list_members(archive: str | Path) -> list[str]:
    """Return the names of the files in an archive.

    Raises:
        InputError: As for :func:`unzip`.
    """
    archive = Path(archive)
    with _open_archive(archive) as file:
        infos = [info for info in file.infolist() if not info.is_dir()]
        for info in infos:
            _member_path(archive, info, Path())
        return [info.filename for info in infos]


@contextmanager
def _open_archive(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Open a .zip file; an InputError if it turns out to be damaged while it is open."""
    try:
        with zipfile.ZipFile(archive) as file:
            yield file
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"archive {archive}: damaged, encrypted or not a .zip file ({error}); remove it and "
            "download it again"
        ) from error


def _member_path(archive: Path, info: zipfile.ZipInfo, folder: Path) -> Path:
    """Return where a member is unpacked to; an InputError if that is outside the folder."""
    name = PurePosixPath(info.filename.replace("\\", "/"))
    path = folder / name
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    leaves = name.is_absolute() or ".." in name.parts
    if is_link or leaves or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"archive {archive}: its member {info.filename!r} would leave the folder; nothing was "
            "unpacked, do not trust this archive"
        )
    return path


@contextmanager
def _atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name once it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # a process that was killed may have left a file of this name
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as output:
            yield output
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
