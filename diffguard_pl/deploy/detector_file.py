"""The file of a calibrated detector, ``detector.json``.

It holds the settings, the threshold, the validation images' scores and hashes of the weights, but
no weights: checkpoints stay where they are. Fitted baselines and path scores are stored beside it.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.registry import SHIPPED
from ..datamodules.reading import ImagePreparation
from ..description import describe_method
from ..diffguard import DiffGuard
from ..errors import InputError, beginning, choose
from ..runs.files import atomic_write
from ..runs.record import CHANGEABLE_MODEL_SETTINGS, weights_hashes
from ..scores.conformal import Threshold, lowest_for_nan, threshold_value
from ..trusted import check_imports

FORMAT, VERSION = "diffguard_pl.Detector", 1
CHECKSUM = "sha256_of_contents"
"""Entry with the SHA-256 of all other entries."""
FILES = ("checkpoint", "weights", "negatives", "unconditional", "vae")
"""Settings of a model that may be paths; names of the registry and of libraries are kept."""
SUFFIX = "_detector.json"
"""Ending of the names of the detector files that come with the package."""
MOVED_CLASSES = {
    "diffguard_pl.diffusion.guidance.ClassifierFreeGuidance": (
        "diffguard_pl.diffusion.classifier_free_guidance.ClassifierFreeGuidance"
    ),
    "diffguard_pl.diffusion.guidance.ClassifierGuidance": (
        "diffguard_pl.diffusion.classifier_guidance.ClassifierGuidance"
    ),
    "diffguard_pl.openood.ResNet18_32x32": "diffguard_pl.classifiers.resnets.ResNet18_32x32",
    "diffguard_pl.smallnet.SmallResNet": "diffguard_pl.classifiers.resnets.SmallResNet",
}
"""Import paths in files of earlier versions of the package."""


@dataclass(frozen=True)
class DetectorFile:
    """Content of a detector file.

    Attributes:
        score: Name of the deciding score.
        threshold: Threshold with its confidence intervals.
        model: Settings of the model, as in a config; None if it was not built from a config.
        method: What scores depend on besides the weights; see
            :func:`~diffguard_pl.description.describe_method`.
        combination: Settings of the fusion and the cascade; None if there are none.
        preparation: Preparation of the images.
        precision: Precision of the networks, by Lightning's names.
        tf32: Whether float32 products on a GPU may round their factors to TF32.
        class_names: Names of the classes; empty if unknown.
        weights: SHA-256 of the weights by part of the model.
        fitted: Name (``file``) and hash (``sha256``) of the file of fitted scores; None if there
            are none.
        about: Provenance: time, versions, data.
        calibration: Deciding scores [n] of the validation images that set the threshold, ascending.
        reference: Scores by name of the validation images that a combination is calibrated on.
    """

    score: str
    threshold: Threshold
    model: dict[str, Any] | None
    method: dict[str, Any]
    combination: dict[str, Any] | None
    preparation: ImagePreparation
    precision: str
    tf32: bool
    class_names: list[str]
    weights: dict[str, str]
    fitted: dict[str, str] | None
    about: dict[str, Any]
    calibration: np.ndarray
    reference: dict[str, np.ndarray]

    def write(self, path: Path) -> None:
        """Write the file, replacing an earlier one.

        Raises:
            InputError: The file cannot be written.
        """
        content = {"format": FORMAT, "version": VERSION}
        content |= {entry.name: getattr(self, entry.name) for entry in fields(self)}
        content["threshold"] = {
            name: value if math.isfinite(value) else None
            for name, value in asdict(self.threshold).items()
        }
        if self.model is not None:
            # relative paths would depend on the working directory
            content["model"] = _map_checkpoints(self.model, _absolute)
        content["preparation"] = asdict(self.preparation)
        content["calibration"] = _to_json(self.calibration)
        content["reference"] = {name: _to_json(scores) for name, scores in self.reference.items()}
        content[CHECKSUM] = checksum(content)
        with atomic_write(path) as temporary:
            text = json.dumps(content, indent=1, allow_nan=False) + "\n"
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "DetectorFile":
        """Read a file.

        Raises:
            InputError: The file is missing, damaged, not a detector file, or of another version.
        """
        content = _read_json(path)
        with reporting_damage(path):
            _check_entries(path, content)
            check_imports(content["model"], path)
            entries = {entry.name: content[entry.name] for entry in fields(cls)}
            calibration = np.sort(lowest_for_nan(_from_json(content["calibration"])))
            entries |= {
                "threshold": _read_threshold(content["threshold"], calibration),
                "model": _with_current_classes(content["model"]),
                "preparation": ImagePreparation(**content["preparation"]),
                "calibration": calibration,
                "reference": {
                    name: _from_json(scores) for name, scores in content["reference"].items()
                },
            }
            return cls(**entries)

    def build_model(self, path: Path, changes: Mapping[str, Any]) -> DiffGuard:
        """Build the model from its settings.

        Args:
            path: Path of the file. Checkpoints that have moved are looked for in its folder.
            changes: New values of settings that scores do not depend on.

        Raises:
            InputError: The file has no settings, a checkpoint is missing, or a setting cannot be
                changed.
        """
        from ..config import diffguard_from

        if self.model is None:
            raise InputError(
                f"{path}: was not made from a config; give the model: "
                "Detector.load(file, model=...)"
            )
        for name in changes:
            choose("setting that may be changed", name, list(CHANGEABLE_MODEL_SETTINGS))
        with reporting_damage(path, "model"):
            settings = _map_checkpoints(self.model, lambda name: _found(name, path.parent))
            return diffguard_from(settings | dict(changes))

    def load_fitted(self, path: Path, model: DiffGuard) -> None:
        """Load the fitted baselines and path scores that are stored beside the file, if any.

        Raises:
            InputError: Their file is missing, or not the one that was written with this file.
        """
        if self.fitted is None:
            return
        import pooch
        from safetensors.torch import load_file

        beside = path.with_name(self.fitted["file"])
        if not beside.is_file():
            raise InputError(
                f"{beside}: not found; put the file of fitted scores beside the detector file"
            )
        if pooch.file_hash(beside) != self.fitted["sha256"]:
            raise InputError(
                f"{beside}: does not belong to the detector file (another hash); calibrate again"
            )
        state = load_file(beside)
        for part, module in _fitted_parts(model).items():
            prefix = f"{part}."
            own = {
                name.removeprefix(prefix): tensor
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
            module.load_state_dict(own)

    def verify_weights(self, path: Path, model: DiffGuard) -> None:
        """Check that a model has the weights that the detector was calibrated with.

        Raises:
            InputError: They differ; names the first part that does.
        """
        weights = weights_hashes(model)
        for name in sorted(self.weights.keys() | weights.keys()):
            if weights.get(name) != self.weights.get(name):
                raise InputError(
                    f"{path}: the weights of the {name} differ from those of the calibration; "
                    "restore their checkpoint, or calibrate again"
                )

    def verify_method(self, path: Path, model: DiffGuard) -> None:
        """Check that a model computes the scores that the detector was calibrated with.

        Raises:
            InputError: Its settings differ; names the first part that does.
        """
        method = describe_method(model)
        for name in sorted(self.method.keys() | method.keys()):
            then, now = self.method.get(name), method.get(name)
            if then != now:
                raise InputError(
                    f"{path}: was calibrated with another {name} ({_in_short(then)}, now "
                    f"{_in_short(now)}); calibrate again"
                )


def write_fitted(path: Path, model: DiffGuard) -> dict[str, str] | None:
    """Write fitted baselines and path scores beside a detector file.

    Returns:
        The entry ``fitted`` of the detector file: None if no score needs fitting.
    """
    if not any(part.needs_fit for part in _fitted_parts(model).values()):
        return None
    import pooch
    from safetensors.torch import save_file

    beside = path.with_name(f"{path.name}.fitted.safetensors")
    state = {
        f"{name}.{key}": tensor.cpu().contiguous()
        for name, part in _fitted_parts(model).items()
        for key, tensor in part.state_dict().items()
    }
    with atomic_write(beside) as temporary:
        save_file(state, temporary)
    return {"file": beside.name, "sha256": pooch.file_hash(beside)}


def _fitted_parts(model: DiffGuard) -> dict[str, Any]:
    """Return the parts of a model that may be fitted to training images, by name."""
    parts: dict[str, Any] = {"baselines": model.baselines, "path_scores": model.path_scores}
    if model.second_network is not None:
        parts["second_network"] = model.second_network.baselines
    return parts


def shipped_detector(name: str | Path) -> Path | None:
    """Return the path of the detector of that name that comes with the package, or None."""
    file = SHIPPED / f"{name}{SUFFIX}"
    is_name = Path(name).name == str(name)
    return file if is_name and file.is_file() else None


@contextmanager
def reporting_damage(path: Path, entry: str = "") -> Iterator[None]:
    """Turn errors about the content of a detector file into an `InputError` that names it.

    Args:
        path: Path of the file.
        entry: Name of the entry that is used, if it is only one.
    """
    where = f"{path}: {entry}" if entry else str(path)
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputError(f"{where}: {beginning(str(error), 1000)}") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{where}: is damaged, or of another version of diffguard_pl "
            f"({type(error).__name__}: {beginning(str(error), 200)}); calibrate again"
        ) from error


# ---- entries


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_dict_of_text(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_scores(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(_is_number(score) or score in (None, "inf") for score in value)


Check = Callable[[Any], bool]
ENTRIES: dict[str, tuple[Check, str]] = {
    "score": (_is_text, "a name"),
    "threshold": (_is_dict, "a dict"),
    "threshold.tpr": (_is_number, "a number"),
    "threshold.value": (lambda value: value is None or _is_number(value), "a number"),
    "model": (lambda value: value is None or _is_dict(value), "a dict of settings or null"),
    "method": (_is_dict, "a dict"),
    "combination": (lambda value: value is None or _is_dict(value), "a dict of settings or null"),
    "preparation": (_is_dict, "a dict of settings"),
    "preparation.image_size": (_is_size, "a number of pixels"),
    "preparation.resize": (_is_size, "a number of pixels"),
    "preparation.interpolation": (_is_text, "a name"),
    "preparation.upright": (lambda value: isinstance(value, bool), "true or false"),
    "precision": (_is_text, "a name"),
    "tf32": (lambda value: isinstance(value, bool), "true or false"),
    "class_names": (
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
        "a list of names",
    ),
    "weights": (_is_dict_of_text, "a dict of hashes"),
    "fitted": (
        lambda value: value is None or (_is_dict_of_text(value) and {"file", "sha256"} <= {*value}),
        "a dict of file and sha256, or null",
    ),
    "about": (_is_dict, "a dict"),
    "calibration": (_is_scores, "a list of scores"),
    "reference": (
        lambda value: isinstance(value, dict) and all(map(_is_scores, value.values())),
        "a dict of lists of scores",
    ),
}
"""By dotted name of an entry: whether a value is of its kind, and the kind in words."""


def _check_entries(path: Path, content: dict[str, Any]) -> None:
    """Raise an `InputError` that names the first entry of a wrong kind, and if entries changed."""
    for name, (is_valid, kind) in ENTRIES.items():
        parent, _, last = name.rpartition(".")
        place = content[parent] if parent else content
        if last not in place:
            raise InputError(
                f"{path}: {name}: is missing; the file is damaged, restore it or calibrate again"
            )
        if not is_valid(place[last]):
            raise InputError(
                f"{path}: {name}: must be {kind}, not {_in_short(place[last])}; the file is "
                "damaged, restore it or calibrate again"
            )
    known = {"format", "version", CHECKSUM, *ENTRIES}
    for name in content:
        if name not in known:
            raise InputError(
                f"{path}: unknown entry {beginning(name, 60)!r}; the file is damaged, or of "
                "another version of diffguard_pl; calibrate again"
            )
    if CHECKSUM not in content:
        raise InputError(
            f"{path}: {CHECKSUM}: is missing; the file is damaged, or of an earlier version of "
            "diffguard_pl; calibrate again"
        )
    if content[CHECKSUM] != checksum(content):
        raise InputError(
            f"{path}: is damaged, or has been changed since it was written ({CHECKSUM} does not "
            "match); restore it, or calibrate again"
        )


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all entries but the checksum, whatever their order and indentation."""
    others = {name: value for name, value in content.items() if name != CHECKSUM}
    others = _with_current_classes(others)
    return sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        shipped = sorted(file.name.removesuffix(SUFFIX) for file in SHIPPED.glob(f"*{SUFFIX}"))
        raise InputError(
            f"{path}: no such file; write one with diffguard-pl calibrate, or use one that comes "
            f"with the package: {', '.join(shipped)}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: is not a detector file ({beginning(str(error), 200)}); write one with "
            "diffguard-pl calibrate"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: is not a detector file; write one with diffguard-pl calibrate")
    if content.get("version") != VERSION:
        raise InputError(
            f"{path}: version: must be {VERSION}, not {_in_short(content.get('version'))}; "
            "calibrate again"
        )
    return content


def local_checkpoints(settings: Any) -> list[Path]:
    """Return the files and folders of this machine that settings of a model name."""
    found: list[Path] = []

    def note(name: str) -> str:
        if _is_local(name) and Path(name) not in found:
            found.append(Path(name))
        return name

    _map_checkpoints(settings, note)
    return found


def with_checkpoints_beside(settings: Any) -> Any:
    """Return settings of a model in which files of this machine are named without their folder."""
    return _map_checkpoints(settings, lambda name: Path(name).name if _is_local(name) else name)


def _map_checkpoints(settings: Any, change: Callable[[str], str]) -> Any:
    """Return settings of a model with its checkpoints changed."""
    if isinstance(settings, list):
        return [_map_checkpoints(item, change) for item in settings]
    if not isinstance(settings, dict):
        return settings
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        if name in FILES and isinstance(value, str):
            changed[name] = change(value)
        elif name == "checkpoint" and isinstance(value, list):
            changed[name] = [change(str(file)) for file in value]
        else:
            changed[name] = _map_checkpoints(value, change)
    return changed


def _is_local(checkpoint: str) -> bool:
    """Return whether a checkpoint is a path; names in the registry and addresses are none."""
    path = Path(checkpoint).expanduser()
    return path.exists() or path.is_absolute()


def _absolute(checkpoint: str) -> str:
    path = Path(checkpoint).expanduser()
    return str(path.absolute()) if _is_local(checkpoint) else checkpoint


def _found(checkpoint: str, folder: Path) -> str:
    """Return a checkpoint, or the path of its namesake in a folder if it is not at its own."""
    path = Path(checkpoint).expanduser()
    beside = folder / path.name
    if path.exists() or "://" in checkpoint:
        return str(path) if path.exists() else checkpoint
    return str(beside) if path.name and beside.exists() else checkpoint


def _with_current_classes(settings: Any) -> Any:
    """Return settings with the present import paths of classes that have moved."""
    if isinstance(settings, dict):
        return {name: _with_current_classes(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [_with_current_classes(item) for item in settings]
    return MOVED_CLASSES.get(settings, settings) if isinstance(settings, str) else settings


def _read_threshold(stored: Mapping[str, Any], calibration: np.ndarray) -> Threshold:
    """Read a threshold, and check that it is that of the calibration scores."""
    read = {entry.name: stored[entry.name] for entry in fields(Threshold)}
    # An interval may be open on one side, which JSON has no number for.
    read["low"] = -math.inf if read["low"] is None else read["low"]
    read["high"] = math.inf if read["high"] is None else read["high"]
    value, _ = threshold_value(calibration, read["tpr"])
    if (value, len(calibration)) != (read["value"], read["images"]):
        raise ValueError("the threshold does not match the calibration scores")
    return Threshold(**read)


def _to_json(scores: np.ndarray) -> list[float | str | None]:
    """Encode scores: NaN and -inf, which rank below all others, as null, and inf as "inf"."""
    encoded: list[float | str | None] = []
    for score in scores.tolist():
        if math.isfinite(score):
            encoded.append(score)
        else:
            encoded.append("inf" if score > 0 else None)
    return encoded


def _from_json(scores: list[float | str | None]) -> np.ndarray:
    return np.array(scores, dtype=np.float64)


def _in_short(value: Any) -> str:
    return beginning(json.dumps(value), 120)
