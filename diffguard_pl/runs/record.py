"""The record of a run, ``run.json`` in its folder: settings, versions, weights and sessions.

A run that is interrupted and resumed has several sessions. Its content is collected in
callbacks/record.py.
"""

import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .files import atomic_write

if TYPE_CHECKING:  # commands that only read a record do without torch
    from torch import nn

RECORD_FILE, CONFIG_FILE = "run.json", "config.yaml"
PACKAGES = (
    "diffguard-pl",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "diffusers",
    "piq",
    "timm",
    "numpy",
    "pyarrow",
)
"""Packages whose versions a record holds."""
CHANGEABLE_DATA_SETTINGS = ("batch_size", "num_workers", "on_error")
"""Settings of the data that do not affect scores; they may change when a run is resumed."""
CHANGEABLE_MODEL_SETTINGS = ("slots", "compile")
"""Settings of the model that do not affect scores, except for rounding."""
TRAINER_SETTINGS = ("precision", "limit_test_batches", "fast_dev_run")
"""Settings of the trainer that affect scores, or which images are scored."""
ENTRIES: dict[str, type] = {
    "config": dict,
    "weights": dict,
    "data": dict,
    "images": dict,
    "sessions": list,
}
"""Entries of a record that others than the report rely on, and their types."""
MAX_DEPTH = 64
"""Levels of nesting beyond which a record is damaged; further code may descend without fear."""


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return the record of a run, or an empty dict if it has none.

    Raises:
        InputError: The record cannot be read, or has another form.
    """
    path = Path(folder) / RECORD_FILE
    run_record = read_record_as_it_is(folder)
    for name, kind in ENTRIES.items():
        if name in run_record and not isinstance(run_record[name], kind):
            raise _unreadable(path, f"{name} is not a {kind.__name__}")
    entries = [*run_record.get("sessions", []), *run_record.get("data", {}).values()]
    if not all(isinstance(entry, dict) for entry in entries):
        raise _unreadable(path, "sessions and data do not hold dicts")
    return run_record


def read_record_as_it_is(folder: str | Path) -> dict[str, Any]:
    """Return the record of a run, whatever its entries hold, or an empty dict if it has none.

    Raises:
        InputError: The record cannot be read, or is not a dict.
    """
    path = Path(folder) / RECORD_FILE
    try:
        run_record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    except RecursionError as error:
        raise _unreadable(path, "nested too deeply") from error
    if not isinstance(run_record, dict):
        raise _unreadable(path, "not a dict")
    if _depth_exceeds(run_record, MAX_DEPTH):
        raise _unreadable(path, "nested too deeply")
    return run_record


def last_session(run_record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the latest session of a record, or an empty dict if it has none."""
    sessions = run_record.get("sessions")
    return sessions[-1] if sessions else {}


def write_record(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Write the record of a run atomically."""
    with atomic_write(Path(folder) / RECORD_FILE) as file:
        file.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def update_session(folder: str | Path, **entries: Any) -> None:
    """Add entries to the current session of the record."""
    record = read_record(folder)
    sessions = record.get("sessions") or [{}]
    sessions[-1].update(entries)
    write_record(folder, record | {"sessions": sessions})


def timestamp() -> str:
    """Return the local time with its UTC offset, in seconds (ISO 8601)."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Return host name, platform, number of CPUs and names of the GPUs."""
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in gpus],
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python, CUDA and the installed `PACKAGES`."""
    import torch

    versions = {"python": platform.python_version()}
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_revisions() -> dict[str, str]:
    """Return the Git revisions of this package and of the working directory, if they are checkouts.

    A trailing ``+`` marks uncommitted changes.
    """
    places = {"diffguard_pl": Path(__file__), "working_directory": Path.cwd()}
    revisions = {name: _git_revision(place) for name, place in places.items()}
    return {name: revision for name, revision in revisions.items() if revision}


def _git_revision(place: Path) -> str | None:
    folder = place if place.is_dir() else place.parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(folder), *args]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if place.is_file():
            # the package may be installed, untracked, below somebody else's checkout
            git("ls-files", "--error-unmatch", place.name)
        revision = git("rev-parse", "HEAD")
        is_modified = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}+" if is_modified else revision


def weights_hash(module: "nn.Module") -> str | None:
    """Return the SHA-256 of a module's tensors and their names, or None if it has no tensors.

    An original checkpoint and its converted copy have the same hash.
    """
    import torch

    state = module.state_dict()
    if not state:
        return None
    digest = sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # as bytes: NumPy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_hashes(diffguard: "nn.Module") -> dict[str, str]:
    """Return the hash of each part of a DiffGuard that has weights, by the name of the part."""
    hashes = {}
    parts = {name: diffguard.get_submodule(name) for name in ("classifier", "backbone")}
    parts["discrepancies"] = diffguard.get_submodule("discrepancies")
    for name in ("second_network", "zero_shot"):
        if getattr(diffguard, name, None) is not None:
            parts[name] = diffguard.get_submodule(f"{name}.network")
    for name, part in parts.items():
        found = weights_hash(part)
        if found:
            hashes[name] = found
    return hashes


def slurm_job_id() -> str | None:
    """Return the ID of the current SLURM job, or None outside one; a requeued job keeps its ID."""
    return os.environ.get("SLURM_JOB_ID")


def slurm_restarts() -> int:
    """Return how often the current SLURM job has been requeued; 0 outside one."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def launch_command() -> list[str]:
    """Return the command that started this process, as it can be repeated."""
    program, package = Path(sys.argv[0]), Path(__file__).parents[1]
    if program == package / "__main__.py":
        return ["python", "-m", "diffguard_pl", *sys.argv[1:]]
    if program.parent == package:
        return ["python", "-m", f"diffguard_pl.{program.stem}", *sys.argv[1:]]
    return [program.name, *sys.argv[1:]]


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Describe the first setting that prevents a run from being resumed with another config.

    Args:
        before: All settings with which the run began, as in a saved config.
        now: All current settings.

    Returns:
        A description of the first difference that affects scores, or None if there is none.
    """
    old, new = score_settings(before), score_settings(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            was, is_now = _in_words(old.get(key)), _in_words(new.get(key))
            return f"{key} was {was} when the run began and is {is_now} now"
    return None


def score_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that scores depend on, by dotted name.

    Sections that the config lacks are None.
    """
    settings = {name: config.get(name) for name in ("model", "data", "shard", "seed_everything")}
    trainer = config.get("trainer")
    if isinstance(trainer, dict):
        settings["trainer"] = {name: trainer.get(name) for name in TRAINER_SETTINGS}
    changeable = [f"model.{name}" for name in CHANGEABLE_MODEL_SETTINGS]
    changeable += [f"data.init_args.{name}" for name in CHANGEABLE_DATA_SETTINGS]
    flat = _flatten(json.loads(json.dumps(settings, default=str)))
    return {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in changeable)
    }


def setting_names(given: Mapping[str, Any]) -> list[str]:
    """Return the dotted names, sorted, of the settings that scores depend on in a part of a config.

    Args:
        given: Some of the settings, as in a saved config without what is left at its default.
    """
    return sorted(score_settings(given).keys() & _flatten(dict(given)).keys())


def _flatten(settings: Any, key: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name: ``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    if not isinstance(settings, dict) or not settings:
        return {key: settings}
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{key}.{name}" if key else str(name))
    return flat


def _in_words(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Return whether dicts and lists are nested deeper than a limit, without recursion."""
    level = [value]
    for _ in range(limit):
        children: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                children += one.values()
            elif isinstance(one, list):
                children += one
        level = children
    return bool(level)


def _unreadable(path: Path, reason: object) -> InputError:
    return InputError(
        f"{path}: cannot be read ({reason}); remove it to continue without the record"
    )
