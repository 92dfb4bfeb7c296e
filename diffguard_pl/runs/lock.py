"""Exclusive locks on run folders: one process at a time writes to a folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError
from .record import slurm_job_id, timestamp

LOCK_FILE, OWNER_FILE = ".lock", ".owner"
held_locks: dict[Path, FileLock] = {}
"""Locks of this process by resolved folder.

The operating system releases them, however the process ends.
"""


def lock_run_folder(folder: str | Path) -> None:
    """Lock a run folder for this process until :func:`releasing_locks` ends.

    A process may lock the same folder twice.

    Raises:
        InputError: Another run, which the message names, is writing to the folder, or the folder
            cannot be written.
    """
    folder = Path(folder)
    resolved = folder.resolve()
    if resolved in held_locks:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"run folder {folder}: {_owner_of(folder)} is writing to it; wait for it to end, "
            "or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(
            f"run folder {folder}: cannot be written ({error.strerror or error}); "
            "earlier results are intact"
        ) from error
    held_locks[resolved] = lock
    _write_owner(folder)


@contextmanager
def releasing_locks() -> Iterator[None]:
    """Release the run folders that this process has locked when the block ends."""
    try:
        yield
    finally:
        for folder in list(held_locks):
            with suppress(OSError):
                (folder / OWNER_FILE).unlink(missing_ok=True)
            held_locks.pop(folder).release()


def _owner_of(folder: Path) -> str:
    owner = ""
    with suppress(OSError):
        owner = (folder / OWNER_FILE).read_text().strip()
    return owner or "another run"


def _write_owner(folder: Path) -> None:
    """Note who holds the lock, for the message that another process shows."""
    job = f" (SLURM job {slurm_job_id()})" if slurm_job_id() else ""
    owner = f"process {os.getpid()} on {socket.gethostname()}{job}, started {timestamp()},\n"
    # the note is optional: on a broken disk the first write of results reports the error
    with suppress(OSError):
        (folder / OWNER_FILE).write_text(owner)
