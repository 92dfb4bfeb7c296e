"""TODO."""

import json
from argparse import ArgumentError
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ..errors import InputError
from .architectures import A, Architecture
from .registry import cached, checkpoint_folder, named, resolve

NOTE = "converted.json"
"""In a converted copy: of which file, at which size and time, of which architecture."""


# ---------------------------------------------------------------------------------------------------------- architectures


def known_architecture(checkpoint: str | Path, kind: type[A]) -> A:
    """The architecture that published weights or a converted copy have; for others the default one of that kind.

    Raises:
        InputError: published weights of another kind.
    """
    published = named(checkpoint)
    if published:
        if not isinstance(published.architecture, kind):
            raise InputError(
                f"checkpoint {published.name} is {published.what}: not one for this backbone; change backbone.class_path"
            )
        return published.architecture
    note = _read_note(Path(checkpoint).expanduser())
    if note.get("kind") == kind.__name__:
        return read_architecture(kind, note["architecture"], str(checkpoint))
    return kind()


def read_architecture(kind: type[A], settings: Any, source: str) -> A:
    """An architecture from plain data, as in a YAML file; ``source`` is for the error."""
    if not isinstance(settings, dict):
        raise InputError(
            f"architecture of {source}: expected settings by name, found a {type(settings).__name__}"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "architecture")
    try:
        return parser.instantiate_classes(
            parser.parse_object({"architecture": settings})
        ).architecture
    except ArgumentError as error:
        raise InputError(f"architecture of {source}: {' '.join(str(error).split())}") from error


# ------------------------------------------------------------------------------------------------------- converted copies


def locate(checkpoint: str | Path, architecture: Architecture) -> Path:
    """As :func:`resolve`, but the converted copy where there is one of that architecture and of the file as it is now."""
    published = named(checkpoint)
    if published:
        copy = copy_folder(checkpoint)
        if is_current(copy, cached(published), architecture):
            return copy
    path = resolve(checkpoint)
    if path.is_file() and is_current(copy_folder(path), path, architecture):
        return copy_folder(path)
    return path


def copy_folder(checkpoint: str | Path) -> Path:
    """Where the converted copy belongs: of a name, into the cache; of a file, beside it."""
    published = named(checkpoint)
    if published:
        return checkpoint_folder() / published.name
    path = resolve(checkpoint)
    return path.with_name(f"{path.stem}-diffusers")


def note_of(source: Path, architecture: Architecture) -> dict:
    """What a converted copy says about the file that it was made of."""
    found = source.stat()
    return {"source": source.name, "size": found.st_size, "mtime_ns": found.st_mtime_ns} | plain(
        architecture
    )


def plain(architecture: Architecture) -> dict:
    """An architecture and its kind as JSON has them: with lists for tuples."""
    return {
        "kind": type(architecture).__name__,
        "architecture": json.loads(json.dumps(asdict(architecture))),
    }


def is_current(copy: Path, source: Path | None, architecture: Architecture) -> bool:
    """Whether a converted copy is whole, of that architecture, and of ``source`` as it is now (of whatever it was, without one)."""
    note = _read_note(copy)
    wanted = note_of(source, architecture) if source else plain(architecture)
    return all(note.get(key) == value for key, value in wanted.items())


def _read_note(folder: Path) -> dict:
    try:
        return json.loads((folder / NOTE).read_text())
    except (OSError, ValueError):
        return {}
