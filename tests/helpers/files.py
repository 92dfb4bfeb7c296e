"""Folders, archives and detector files."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffguard_pl.deploy.detector_file import CHECKSUM, checksum


def leftovers(folder: Path) -> list[str]:
    """Return the names in a folder, without lock files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def changed_detector(file: Path, copy: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write a copy of a detector file whose content is changed, with the checksum of that."""
    content = json.loads(file.read_text())
    change(content)
    content[CHECKSUM] = checksum(content)
    copy.write_text(json.dumps(content))
    return copy
