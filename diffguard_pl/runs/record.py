"""The record of a run, ``run.json`` in its folder: settings, versions, weights, and an entry for each time it began or went on."""

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
from .files import replacing

if TYPE_CHECKING:
    from torch import nn

RECORD, CONFIG = "run.json", "config.yaml"
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
FREE = ("batch_size", "num_workers", "on_error")
"""Settings of the data that scores do not depend on."""
FREE_OF_MODEL = ("slots", "compile")
"""Settings of the detector that scores do not depend on, but for rounding."""
TRAINER = ("precision", "limit_test_batches", "fast_dev_run")
"""Settings of the trainer that scores, or which there are, depend on."""


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record of a run; empty where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = Path(folder) / RECORD
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); remove it to go on without the record"
        ) from error


def write_record(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Write the record; the file is whole or as it was before."""
    path = Path(folder) / RECORD
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1, default=str) + "\n")


def update_session(folder: str | Path, **entries: Any) -> None:
    """Note something of the session that is under way."""
    record = read_record(folder)
    sessions = record.setdefault("sessions", [{}])
    sessions[-1].update(entries)
    write_record(folder, record)


def now() -> str:
    """Local time with its offset, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Describe the machine that this process runs on: host, platform, CPU cores and GPUs."""
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, CUDA and the packages that scores depend on."""
    import torch

    found = {"python": platform.python_version()} | (
        {"cuda": torch.version.cuda} if torch.version.cuda else {}
    )
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revisions() -> dict[str, str]:
    """Git revisions of this package and of the working directory, where they are checkouts; ``+`` after one with changes."""
    places = {"diffguard_pl": Path(__file__), "working_directory": Path.cwd()}
    return {name: revision for name, place in places.items() if (revision := _revision(place))}


def _revision(place: Path) -> str | None:
    folder = place if place.is_dir() else place.parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        if place.is_file():
            git(
                "ls-files", "--error-unmatch", place.name
            )  # it may be installed somewhere below another project
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def weights_hash(module: "nn.Module") -> str | None:
    """SHA-256 over the tensors of a module and their names; None where it has none.

    The same for an original checkpoint and its converted copy.
    """
    from torch import uint8

    state = module.state_dict()
    if not state:
        return None
    total = sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy())
    return total.hexdigest()


def weights_hashes(detector: Any) -> dict[str, str]:
    """Of the parts of a :class:`~diffguard_pl.DiffGuard` that have weights, by name."""
    parts = {
        "classifier": detector.classifier,
        "backbone": detector.backbone,
        "discrepancies": detector.discrepancies,
    }
    return {name: found for name, part in parts.items() if (found := weights_hash(part))}


def slurm_job() -> str | None:
    """The SLURM job that this process is of; a requeued job keeps its number."""
    return os.environ.get("SLURM_JOB_ID")


def command() -> list[str]:
    """How this process was started."""
    program, package = Path(sys.argv[0]), Path(__file__).parents[1]
    if program == package / "__main__.py":
        return ["python", "-m", "diffguard_pl", *sys.argv[1:]]
    if program.parent == package:
        return ["python", "-m", f"diffguard_pl.{program.stem}", *sys.argv[1:]]
    return [program.name, *sys.argv[1:]]


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Why a run begun with one config cannot go on with another: the first setting that scores depend on and that differs.

    Args:
        before, now: all settings, as in a saved config.
    """
    old, new = _deciding(before), _deciding(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key} was {_shown(old.get(key))} when the run began and is {_shown(new.get(key))} now"
    return None


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that scores depend on, by their dotted names."""
    trainer = config.get("trainer") or {}
    data = json.loads(json.dumps(config.get("data")))
    for name in FREE:
        (data.get("init_args") or {}).pop(name, None)
    model = {
        name: value
        for name, value in (config.get("model") or {}).items()
        if name not in FREE_OF_MODEL
    }
    rest: dict[str, Any] = {"trainer": {name: trainer.get(name) for name in TRAINER}}
    rest |= {name: config.get(name) for name in ("shard", "seed_everything")}
    return _flat({"model": model, "data": data} | rest)


def _flat(settings: Any, key: str = "") -> dict[str, Any]:
    if isinstance(settings, dict) and settings:
        return {
            k: v
            for name, value in settings.items()
            for k, v in _flat(value, f"{key}.{name}" if key else str(name)).items()
        }
    return {key: settings}


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
