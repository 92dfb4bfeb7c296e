"""Atomic file writes: a file on disk is complete or absent."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError


def apply_umask(file: Path) -> None:
    """Set a file's mode to that of any new file.

    safetensors creates files that only their owner can read.
    """
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces ``path`` if the block succeeds.

    Raises:
        InputError: The file cannot be written, for example because the disk is full.
    """
    # process id and random suffix: concurrent writers never share a temporary file
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        apply_umask(temporary)
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); earlier results are intact: "
            "fix the cause, then continue the run with --resume"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
