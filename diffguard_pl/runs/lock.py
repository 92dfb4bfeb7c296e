"""Exclusive locks between processes: on run folders, downloads and other files.

The operating system holds a lock and drops it however the process ends. Some file systems have no
such locks (Lustre without ``-o flock``, NFS without its lock service). There the lock is a lease: a
file that its holder refreshes. Another process takes it over if the holder, on the same host, has
ended, or if nobody has refreshed it for `LEASE_SECONDS`.
"""

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .record import CONFIG_FILE, RECORD_FILE, slurm_job_id, timestamp

if TYPE_CHECKING:  # imported where a lock is acquired, since it takes a while
    from filelock import BaseFileLock

LOCK_FILE = ".lock"
LEASE_SECONDS = 60.0
"""Age from which on a lease that nobody has refreshed is that of a process that has ended."""
LACKS_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of a file system that lacks locks."""


class Lock:
    """Exclusive lock, held by one process at a time.

    Args:
        path: Path of the lock file, which is created and, on release, removed. Its folder exists.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lease = path.with_name(f"{path.name}.lease")
        self.note = path.with_name(f"{path.name}.owner")
        self.held: BaseFileLock | None = None

    def acquire(self, timeout: float = 0.0) -> bool:
        """Acquire the lock, and return whether this succeeded.

        Args:
            timeout: Seconds to wait while another process holds it; -1 for no limit. Defaults to 0.

        Raises:
            OSError: The lock file cannot be written.
        """
        from filelock import Timeout

        try:
            self.held = self._acquire_lock_or_lease(timeout)
        except Timeout:
            return False
        self._write_note()
        return True

    def acquire_unless_held(self) -> bool:
        """Acquire the lock unless a running process holds it, and return whether this succeeded.

        A lease of another host may be that of a process that has ended. This shows after
        `LEASE_SECONDS`.

        Raises:
            OSError: The lock file cannot be written.
        """
        if self.acquire():
            return True
        if not self.lease.exists() or self._read_note().get("host") == socket.gethostname():
            return False
        print(
            f"{self.lease}: waiting for up to {LEASE_SECONDS:.0f} s to see whether {self.owner} "
            "has ended",
            file=sys.stderr,
            flush=True,
        )
        return self.acquire(timeout=1.25 * LEASE_SECONDS)

    def release(self) -> None:
        """Release the lock, if it is held, and remove its files."""
        if self.held is None:
            return
        # A process that has opened the file meanwhile notices that it is gone.
        for file in (self.note, self.path):
            with suppress(OSError):
                file.unlink()
        with suppress(OSError):
            self.held.release()
        self.held = None
        if sys.platform == "win32":  # which removes no file that a process has open
            with suppress(OSError):
                self.path.unlink()

    @property
    def owner(self) -> str:
        """Description of the process that holds the lock, for messages."""
        note = self._read_note()
        if not note:
            return "another process"
        process, host, began = (note.get(name) for name in ("process", "host", "began"))
        job = f" (SLURM job {note['job']})" if note.get("job") else ""
        return f"process {process} on {host}{job}, started {began}"

    @property
    def remedy(self) -> str:
        """What a user can do about a lock that another process holds, for messages."""
        if self.lease.exists():
            return f"wait for it to end, or remove {self.lease} if it has ended"
        return "wait for it to end"

    def _acquire_lock_or_lease(self, timeout: float) -> "BaseFileLock":
        from filelock import (
            FileLock,
            LeaseSettingsMismatch,
            SoftFileLease,
            SoftFileLock,
            Timeout,
        )

        # A Python without fcntl takes this class for FileLock.
        if not issubclass(FileLock, SoftFileLock):
            try:
                lock = FileLock(self.path, fallback_to_soft=False)
                lock.acquire(timeout=timeout)
                return lock
            except OSError as error:
                if error.errno not in LACKS_LOCKS:
                    raise
        try:
            lease = SoftFileLease(self.lease, lease_duration=LEASE_SECONDS)
            # The first attempt may only remove the lease of a process that has ended.
            lease.acquire(timeout=timeout or 0.2)
            return lease
        except LeaseSettingsMismatch as error:  # the lease is of another version
            raise Timeout(str(self.lease)) from error

    def _read_note(self) -> dict[str, object]:
        with suppress(OSError, ValueError, RecursionError):
            note = json.loads(self.note.read_text(encoding="utf-8"))
            if isinstance(note, dict):
                return note
        return {}

    def _write_note(self) -> None:
        """Note who holds the lock, for the message that another process shows."""
        note = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "job": slurm_job_id(),
            "began": timestamp(),
        }
        # the note is optional: on a broken disk the first write of results reports the error
        with suppress(OSError):
            self.note.write_text(json.dumps(note) + "\n", encoding="utf-8")


@contextmanager
def locked(file: Path, progress: bool = True) -> Iterator[None]:
    """Let one process at a time create a file or folder; the others wait here.

    Args:
        file: File or folder to create; its parent folder is created if it does not exist.
        progress: Whether to report on stderr that the process waits. Defaults to True.

    Raises:
        OSError: The lock cannot be written beside the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(file.with_name(f".{file.name}.lock"))
    if not lock.acquire(timeout=1):
        if progress:
            print(
                f"waiting for another process to finish {file.name}: {lock.owner}; {lock.remedy}",
                file=sys.stderr,
                flush=True,
            )
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()


# ---- run folders

held_locks: dict[Path, tuple[Lock, list[Path]]] = {}
"""Locks of this process by resolved folder, with the folders that were made for them."""


def lock_run_folder(folder: str | Path) -> None:
    """Lock a run folder for this process until :func:`releasing_locks` ends.

    The folder is created if it does not exist. A process may lock the same folder twice.

    Raises:
        InputError: Another run, which the message names, is writing to the folder, or the folder
            cannot be written.
    """
    folder = Path(folder)
    if folder.resolve() not in held_locks:
        with _naming_unwritable(folder):
            made = _missing_folders(folder)
            folder.mkdir(parents=True, exist_ok=True)
            _lock(folder, made)


def lock_new_run_folder(path: str | Path) -> Path:
    """Create and lock a folder, with ``-2``, ``-3``, ... if another run has just taken the name.

    Returns:
        Path of the folder.

    Raises:
        InputError: The folder cannot be written.
    """
    with _naming_unwritable(Path(path)):
        folder, made = make_new_folder(path)
        _lock(folder, made)
    return folder


def make_new_folder(path: str | Path) -> tuple[Path, list[Path]]:
    """Create a folder, with ``-2``, ``-3``, ... if another run has just taken the name.

    Returns:
        Path of the folder, and all folders that were created, innermost first.
    """
    folder, number = Path(path), 1
    while True:
        made = _missing_folders(folder)
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder, made
        number += 1
        folder = Path(f"{path}-{number}")


@contextmanager
def releasing_locks() -> Iterator[None]:
    """Release the run folders that this process has locked when the block ends.

    A folder that was created for a run, and that the run has left empty, is removed; so is that of
    a run that has failed before it had any results.
    """
    has_failed = False
    try:
        yield
    except Exception:
        has_failed = True
        raise
    finally:
        while held_locks:
            folder, (lock, made) = held_locks.popitem()
            lock.release()
            if made and has_failed:
                _remove_start(folder)
            for empty in made:
                with suppress(OSError):  # has content
                    empty.rmdir()


def _lock(folder: Path, made: list[Path]) -> None:
    """Lock an existing folder."""
    lock = Lock(folder / LOCK_FILE)
    if not lock.acquire_unless_held():
        raise InputError(
            f"run folder {folder}: in use by {lock.owner}; {lock.remedy}, or choose another folder"
        )
    held_locks[folder.resolve()] = lock, made


def _remove_start(folder: Path) -> None:
    """Remove record and config from a folder that holds nothing else."""
    with suppress(OSError):
        files = list(folder.iterdir())
        if {file.name for file in files} <= {RECORD_FILE, CONFIG_FILE}:
            for file in files:
                file.unlink()


def _missing_folders(folder: Path) -> list[Path]:
    """Return those of a folder and its parents that do not exist, innermost first."""
    resolved = folder.resolve()
    return [path for path in (resolved, *resolved.parents) if not path.exists()]


@contextmanager
def _naming_unwritable(folder: Path) -> Iterator[None]:
    """Turn an `OSError` into an `InputError` that names the folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"run folder {folder}: cannot be written ({error.strerror or error}); "
            "earlier results are intact"
        ) from error
