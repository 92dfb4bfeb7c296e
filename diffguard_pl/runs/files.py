"""Results on disk are whole or not there."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError


def as_readable_as_others(file: Path) -> None:
    """Give a file the mode of any other new one: safetensors lets its owner alone read what it writes."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another name to write a file under; it gets its own, in place of what had it, once it is whole.

    Raises:
        InputError: it cannot be written, for a full disk say.
    """
    unfinished = path.with_name(
        f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
    )  # no other writer's
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        as_readable_as_others(unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: could not be written ({error.strerror or error}); what was written before is kept: once this is mended, "
            "--resume goes on with the run"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
