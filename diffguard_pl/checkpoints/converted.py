"""Converted copies of original checkpoints, and the architecture of a checkpoint.

``diffguard-pl checkpoints convert`` writes a checkpoint as diffusers modules in safetensors. Its
``converted.json`` records the source file and the architecture, so that the copy is used instead of
the file as long as both are unchanged.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from .architectures import Architecture, ArchitectureT
from .registry import cached_path, checkpoint_folder, find_published, resolve

RECORD_FILE = "converted.json"
"""File in a converted copy that records its source file and architecture."""


# ---- architectures


def known_architecture(checkpoint: str | Path, *kinds: type[ArchitectureT]) -> ArchitectureT | None:
    """Return the architecture of published weights or of a converted copy; None if unknown.

    Args:
        checkpoint: Value of a ``checkpoint`` setting.
        kinds: Classes of the architectures that the caller can use.

    Raises:
        InputError: The published weights have an architecture of another class.
    """
    published = find_published(checkpoint)
    if published:
        if not isinstance(published.architecture, kinds):
            raise InputError(
                f"checkpoint: {published.name} ({published.description}) does not fit this "
                "backbone; change backbone.class_path"
            )
        return published.architecture
    record = _read_record(Path(checkpoint).expanduser())
    for kind in kinds:
        if record.get("kind") == kind.__name__:
            return parse_architecture(kind, record["architecture"], str(checkpoint))
    return None


def parse_architecture(kind: type[ArchitectureT], settings: Any, source: str) -> ArchitectureT:
    """Build an architecture from plain data, as read from YAML or JSON.

    Args:
        kind: Class of the architecture.
        settings: Settings by name; those left out keep their defaults.
        source: File or checkpoint that the settings come from, for the error message.

    Raises:
        InputError: A setting is unknown or has a wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if not isinstance(settings, dict):
        raise InputError(
            f"architecture of {source}: must be a mapping of settings, "
            f"not a {type(settings).__name__}"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "architecture")
    try:
        parsed = parser.parse_object({"architecture": settings})
        return parser.instantiate_classes(parsed).architecture
    except ArgumentError as error:
        raise InputError(f"architecture of {source}: {' '.join(str(error).split())}") from error


def architecture_record(architecture: Architecture) -> dict:
    """Return an architecture and the name of its class as JSON data (lists instead of tuples)."""
    settings = json.loads(json.dumps(asdict(architecture)))
    return {"kind": type(architecture).__name__, "architecture": settings}


# ---- converted copies


def converted_or_original(checkpoint: str | Path, architecture: Architecture) -> Path:
    """Return the converted copy of a checkpoint if it is up to date, else the checkpoint itself.

    Args:
        checkpoint: Value of a ``checkpoint`` setting; downloaded if needed, see :func:`resolve`.
        architecture: Architecture that the copy must have been converted with.
    """
    # A copy of published weights is enough by itself: the original may have been deleted.
    published = find_published(checkpoint)
    if published:
        copy = converted_folder(checkpoint)
        if is_up_to_date(copy, cached_path(published), architecture):
            return copy

    path = resolve(checkpoint)
    if path.is_file() and is_up_to_date(converted_folder(path), path, architecture):
        return converted_folder(path)
    return path


def converted_folder(checkpoint: str | Path) -> Path:
    """Return the folder of a converted copy: in the cache for a name, else beside the file."""
    published = find_published(checkpoint)
    if published:
        return checkpoint_folder() / published.name
    path = resolve(checkpoint)
    return path.with_name(f"{path.stem}-diffusers")


def conversion_record(source: Path, architecture: Architecture) -> dict:
    """Return the content of ``converted.json`` for a source file and its architecture."""
    status = source.stat()
    identity = {"source": source.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return identity | architecture_record(architecture)


def is_up_to_date(copy: Path, source: Path | None, architecture: Architecture) -> bool:
    """Return whether a converted copy is complete and matches its source and architecture.

    Args:
        copy: Folder of the converted copy.
        source: Original file; None if it has been deleted, then only the architecture is compared.
        architecture: Architecture that the copy must have been converted with.
    """
    if source:
        expected = conversion_record(source, architecture)
    else:
        expected = architecture_record(architecture)
    record = _read_record(copy)
    # a copy of an earlier version does not have the settings that were added since
    defaults = architecture_record(type(architecture)())["architecture"]
    record["architecture"] = defaults | record.get("architecture", {})
    return all(record.get(key) == value for key, value in expected.items())


def _read_record(folder: Path) -> dict:
    """Return the content of ``converted.json``; empty if the file is missing or damaged."""
    try:
        return json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
