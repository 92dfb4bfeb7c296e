"""One run at a time writes into a folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import InputError
from .record import now, slurm_job

LOCK, OWNER = ".lock", ".owner"
held: dict[Path, FileLock] = {}
"""Locks of this process; the system releases them when it ends, however it ends."""


def claim(folder: str | Path) -> None:
    """Make the folder this process's own, until :func:`releasing` ends.

    Raises:
        InputError: another run is writing there; it is named.
    """
    folder = Path(folder)
    place = folder.resolve()
    if place in held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = "another run"
        with suppress(OSError):
            owner = (folder / OWNER).read_text().strip() or owner
        raise InputError(
            f"run folder {folder}: {owner} is writing there; wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(
            f"run folder {folder}: could not be written ({error.strerror or error}); what was written before is kept"
        ) from error
    held[place] = lock
    job = f" (SLURM job {slurm_job()})" if slurm_job() else ""
    with suppress(OSError):  # what is wrong with the disk will be said by what cannot do without it
        (folder / OWNER).write_text(
            f"process {os.getpid()} on {socket.gethostname()}{job}, begun {now()},\n"
        )


@contextmanager
def releasing() -> Iterator[None]:
    """Give the claimed folders back in the end."""
    try:
        yield
    finally:
        for folder in list(held):
            with suppress(OSError):
                (folder / OWNER).unlink(missing_ok=True)
            held.pop(folder).release()
