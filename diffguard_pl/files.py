"""Results on disk are whole or not there."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another name to write a file under; it gets its own, in place of what had it, once it is whole.

    Raises:
        InputError: it cannot be written, for a full disk say.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: could not be written ({error.strerror or error}); what was written before is kept: once this is mended, "
            "--resume goes on with the run"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
