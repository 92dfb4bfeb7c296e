"""TODO."""

import json
import math
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from safetensors.torch import load_file

from ..checkpoints.registry import SHIPPED
from ..diffguard import DiffGuard
from ..errors import InputError
from ..runs import record

FORMAT, VERSION = "diffguard_pl.Detector", 1


def _check_weights(file: Path, expected: Mapping[str, str], model: DiffGuard) -> None:
    found = record.weights_hashes(model)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"{file}: the weights of the {name} are not those that it was calibrated with; give their checkpoint back, or "
                "calibrate again"
            )


def method(model: DiffGuard) -> dict[str, Any]:
    """What, besides the weights, the scores of a model depend on."""
    plain = (bool, int, float, str, list, tuple, dict, type(None))

    def settings(part: Any, *left_out: str) -> dict[str, Any]:
        own = {
            name: value
            for name, value in vars(part).items()
            if name[0] != "_" and name not in left_out and isinstance(value, plain)
        }
        return {"class": type(part).__qualname__} | own

    classifier, backbone = model.classifier, model.backbone
    found = {
        "scores": model.score_names,
        "schedule": [
            model.schedule.timesteps.tolist(),
            [f"{level:.6g}" for level in backbone.alpha_bar.tolist()],
        ],
        "detector": settings(model, "training", "slots", "compiled", "nfe"),
        "guidance": settings(model.guidance, "training"),
        "baselines": model.baselines.hyperparameters,
        "classifier": {
            name: getattr(classifier, name)
            for name in ("input_size", "crop", "interpolation", "cam_layer", "map_layers")
        },
        "normalisation": [classifier.mean.flatten().tolist(), classifier.std.flatten().tolist()],
        "backbone": [
            type(backbone).__qualname__,
            backbone.input_size,
            backbone.clip_denoised,
            backbone.null_label,
        ],
    }
    found["schedule"] = sha256(json.dumps(found["schedule"]).encode()).hexdigest()
    return json.loads(json.dumps(found))


def _check_method(file: Path, expected: Mapping[str, Any], model: DiffGuard) -> None:
    found = method(model)
    for part in sorted(expected.keys() | found.keys()):
        if found.get(part) != expected.get(part):
            raise InputError(
                f"{file}: was calibrated with another {part} ({_shown(expected.get(part))}; this is {_shown(found.get(part))}); "
                "calibrate again"
            )


def _shown(part: Any) -> str:
    return json.dumps(part)[:120]


def _with_paths(settings: Any, change: Callable[[Path], str]) -> Any:
    """Settings of a model with its checkpoints that are files or folders, or were, changed."""
    if isinstance(settings, list):
        return [_with_paths(part, change) for part in settings]
    if not isinstance(settings, dict):
        return settings
    is_path = {
        name: isinstance(part, str) and name == "checkpoint" for name, part in settings.items()
    }
    return {
        name: _changed(part, change) if is_path[name] else _with_paths(part, change)
        for name, part in settings.items()
    }


def _changed(checkpoint: str, change: Callable[[Path], str]) -> str:
    path = Path(checkpoint).expanduser()
    return change(path) if path.exists() or path.is_absolute() else checkpoint


def _found(path: Path, folder: Path) -> str:
    """A checkpoint where it was, or beside the detector file."""
    beside = folder / path.name
    return str(beside if beside.exists() and not path.exists() else path)


def _for_json(values: np.ndarray) -> list[float | str | None]:
    """NaN and -inf, which both are below all others, as null; inf as the word."""
    return [
        value if math.isfinite(value) else "inf" if value > 0 else None for value in values.tolist()
    ]


def _load_fitted(file: Path, expected: str, model: DiffGuard) -> None:
    if not file.is_file():
        raise InputError(
            f"{file}: is missing; it belongs beside the detector file, with the fitted baselines"
        )
    if pooch.file_hash(file) != expected:
        raise InputError(
            f"{file}: is not the one that the detector file was written with; calibrate again"
        )
    model.baselines.load_state_dict(load_file(file))


def shipped(name: str | Path) -> Path | None:
    """The detector of the package that is called so."""
    file = SHIPPED / f"{name}_detector.json"
    return file if Path(name).name == str(name) and file.is_file() else None


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError as error:
        there = ", ".join(
            sorted(
                path.name.removesuffix("_detector.json") for path in SHIPPED.glob("*_detector.json")
            )
        )
        raise InputError(
            f"{file}: no such file; diffguard-pl calibrate writes one, and with the package comes: {there}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: no detector file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file}: no detector file; diffguard-pl calibrate writes one")
    if content.get("version") != VERSION:
        raise InputError(
            f"{file}: a detector file of version {content.get('version')}; this is for version {VERSION}: calibrate again"
        )
    return content
