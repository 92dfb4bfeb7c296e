"""A detector to deploy: DiffGuard, a threshold that in-distribution images have set, and decisions.

detector = Detector.load("detector.json")            # what `diffguard-pl calibrate --config digits_ldm` has written
decisions = detector.predict([image, "photo.jpg"])   # PIL images, paths, arrays, tensors
decisions.accepted, decisions.label_names, decisions.p_values

Or from parts of your own: ``Detector(diffguard).calibrate(validation_loader).save("detector.json")``. Its methods are those of
pytorch-ood's detectors; the features of an image are its scores, in the order of ``score_names``.
"""

import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor

from ..config import diffguard_from
from ..datamodules.reading import read_image, reason, rgb, standard_transform, three_channels
from ..diffguard import DiffGuard
from ..errors import InputError, choose
from ..names import CASCADE
from ..runs import record
from ..runs.files import atomic_write
from ..scores.combination import Cascade, Combination, Fusion
from ..scores.conformal import Threshold, check_tpr, lowest_for_nan, p_values, threshold
from ..stages import Detection, Gate, as_batch
from .decisions import Decisions, _joined
from .detector_file import (
    FORMAT,
    VERSION,
    _check_method,
    _check_weights,
    _content,
    _for_json,
    _found,
    _load_fitted,
    _with_paths,
    method,
    shipped,
)

COMPUTING = threading.RLock()
"""Threads take turns: hooks on a network and the flags of float32 products are of the whole process."""
HALF = {
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
}
"""Precisions, by Lightning's names, in which the networks compute; float32 is any other."""
PRECISIONS = ["32-true", *HALF]
AT_A_TIME = 64
"""Images that the classifier is given at once, of any number that are to be decided on."""
ImageLike = Tensor | np.ndarray | Image.Image | str | Path
"""One image: PIL, a path, an array [H, W, 3] or [H, W], or a tensor [3, H, W], [1, H, W] or [H, W]; uint8, or floats in [0, 1]."""


class Detector:
    """Accepts or rejects images. Threads may share it, and take turns at the networks.

    Args:
        model: DiffGuard, with its baselines fitted if they need it.
        score: that decides; none: the cascade if there is one, else the fusion if there is one, else the first discrepancy.
        tpr: share of in-distribution images that are to be accepted.
        fusion, cascade: scores that are made of others; a cascade does not diffuse what the baseline is sure of, whatever its
            ``skip`` says.
        preparation: of images of other sizes: ``resize``, ``image_size``, ``interpolation`` and ``upright`` as of the data modules;
            none: the short side is resized to the model's input size, and the centre cropped.
        class_names: of the labels; none: the classifier's own, if it has any.
        precision: of the networks, by Lightning's names; none: float32.
        tf32: on a GPU, round factors of float32 products to TF32, see :class:`~diffguard_pl.DiffGuardModule`.

    Attributes:
        calibrated: the threshold and what is known of it; None before ``calibrate``.
    """

    def __init__(
        self,
        model: DiffGuard,
        score: str | None = None,
        tpr: float = 0.95,
        fusion: Fusion | None = None,
        cascade: Cascade | None = None,
        preparation: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        precision: str | None = None,
        tf32: bool = False,
    ):
        if not isinstance(model, DiffGuard):
            raise InputError(
                f"Detector: expected a DiffGuard, got {model!r:.80}; Detector.load(...) reads a detector file"
            )
        self.model = model.eval()
        if cascade:  # of a run: in it, what is NaN was skipped. Here every image, of the calibration too, is scored by one rule
            cascade = replace(cascade, skip=False)
        self.combination = Combination.checked(
            fusion, cascade, model.discrepancies.names, model.baselines.names
        )
        there = [*model.score_names, *self.combination.names]
        self.score = score or (self.combination.names[-1] if self.combination else there[0])
        choose("score", self.score, there)
        check_tpr(tpr)
        self.tpr = tpr
        size = model.input_size
        defaults: dict[str, Any] = {
            "image_size": size,
            "resize": size,
            "interpolation": "bilinear",
            "upright": False,
        }
        for name in preparation or ():
            choose("setting of preparation", name, list(defaults))
        self.preparation: dict[str, Any] = defaults | dict(preparation or {})
        if self.preparation["image_size"] != size:
            raise InputError(
                f"preparation: image_size {self.preparation['image_size']}; the model takes images of {size} px"
            )
        if self.preparation["resize"] < size:
            raise InputError(
                f"preparation: resize {self.preparation['resize']} is less than {size}, which is cropped from it"
            )
        self.transform = standard_transform(
            *(self.preparation[name] for name in ("resize", "image_size", "interpolation"))
        )
        self.class_names = list(class_names or model.classifier.class_names or [])
        if self.class_names and len(self.class_names) != model.classifier.num_classes:
            raise InputError(
                f"class_names: {len(self.class_names)} of them, for {model.classifier.num_classes} classes"
            )
        self.precision, self.tf32 = precision or "32-true", tf32
        choose("precision", self.precision, PRECISIONS)
        if self.precision in ("bf16-true", "16-true"):
            model.networks_to(HALF[self.precision])
        self.settings: dict[str, Any] | None = None
        """Of ``model``, as in a config, where it was made from one."""
        self.about: dict[str, Any] = {}
        """What else a file says: versions, data."""
        self.reference: dict[str, np.ndarray] = {}
        """Scores of the validation images that a combination is calibrated on; the threshold is from others, none of them."""
        self.calibration = np.zeros(0)
        """Deciding scores of the validation images that the threshold is from, from low to high."""
        self.calibrated: Threshold | None = None

    @property
    def score_names(self) -> list[str]:
        """Of the features of an image: all scores that are computed of it."""
        return self.model.score_names

    @property
    def is_combined(self) -> bool:
        """Whether the deciding score is made of others, as half of the validation images say; the other half sets the threshold."""
        return self.score in self.combination.names

    @property
    def threshold(self) -> float:
        """Scores below it are rejected."""
        return self._calibrated().value

    @property
    def device(self) -> torch.device:
        """That it computes on."""
        return self.model.classifier.mean.device

    def to(self, device: torch.device | str) -> "Detector":
        """Move the networks."""
        self.model.to(device)
        return self

    def calibrate(self, loader: Iterable[Any]) -> "Detector":
        """Set the threshold.

        Args:
            loader: of in-distribution images that neither the classifier nor the baselines were trained on, in batches:
                [N, 3, H, W] in [0, 1], pairs of these and labels, or dicts with ``image``. Labels are not used.
        """
        found = [
            self._features(detection) for _, detection in self._detected(loader, None) if detection
        ]
        if not found:
            raise InputError("calibrate: the loader has no images")
        return self.calibrate_features(torch.cat(found))

    def fit_baselines(self, loader: Iterable[Any]) -> "Detector":
        """Fit baselines that need it to the classifier's training images, see :meth:`diffguard_pl.DiffGuard.fit_baselines`."""
        with self._arithmetic():
            self.model.fit_baselines(loader)
        return self

    def calibrate_features(self, features: Tensor) -> "Detector":
        """Set the threshold from scores that are known.

        Args:
            features: [N, K] the scores of in-distribution images in the order of ``score_names``.
        """
        scores, reference = self._by_name(features), {}
        deciding = scores[self.score] if not self.is_combined else np.zeros(0)
        if self.is_combined:
            # a threshold on the images that made the scale would promise too much; their order may mean something
            order = np.random.default_rng(0).permutation(len(features))
            ours, others = order[: len(order) // 2], order[len(order) // 2 :]
            reference = {name: values[ours] for name, values in scores.items()}
            deciding = self.combination(
                reference, {name: values[others] for name, values in scores.items()}
            )[self.score]
        self.calibrated = threshold(deciding, self.tpr)
        self.calibration, self.reference = np.sort(lowest_for_nan(deciding)), reference
        return self

    def with_tpr(self, tpr: float) -> "Detector":
        """Another threshold from the same validation images."""
        self._calibrated()
        self.calibrated, self.tpr = threshold(self.calibration, tpr), tpr
        return self

    def predict(self, images: Tensor | Sequence[ImageLike] | ImageLike) -> Decisions:
        """Decide on images.

        Args:
            images: [N, 3, H, W] in [0, 1] or uint8, a list of images of any sizes, or one image.

        Raises:
            InputError: one of them cannot be read, or the detector is not calibrated.
        """
        self._calibrated()
        return _joined(
            [found for _, found in self.decide(self._parts(images)) if found is not None]
        )

    def predict_features(self, features: Tensor) -> Decisions:
        """Decide by scores that are known.

        Args:
            features: [N, K] scores of images in the order of ``score_names``; discrepancies may be NaN where the cascade is sure.
        """
        self._calibrated()
        count = len(features)
        return self._decisions(
            self._by_name(features), torch.full((count,), -1), torch.zeros(count, dtype=torch.bool)
        )

    def __call__(self, images: Tensor | Sequence[ImageLike] | ImageLike) -> Tensor:
        """Outlier scores [N], higher = more out-of-distribution, as of pytorch-ood's detectors."""
        return self.predict(images).outlier_scores

    def features(self, images: Tensor | Sequence[ImageLike] | ImageLike) -> Tensor:
        """Scores [N, K] of images, in the order of ``score_names``, on the CPU; all images are diffused."""
        detected = self._detected(self._parts(images), None)
        return torch.cat([self._features(detection) for _, detection in detected if detection])

    def decide(
        self, batches: Iterable[Any]
    ) -> Iterator[tuple[Mapping[str, Any], Decisions | None]]:
        """Decide on batches of images, in their order; the diffusion model's batch is filled across their boundaries.

        Args:
            batches: dicts with ``image`` [N, 3, H, W] in [0, 1], of the model's input size, and whatever else; or images, or pairs
                of images and labels. N may be 0.

        Yields:
            The batch as a dict, and the decisions; None where it had no images.
        """
        self._calibrated()
        for batch, detection in self._detected(batches, self._gate()):
            if detection is None:
                yield batch, None
                continue
            scores = {
                name: values.cpu().numpy().astype(np.float64)
                for name, values in detection.scores.items()
            }
            decisions = self._decisions(
                scores, detection.prediction.predicted.cpu(), detection.stop_index.cpu() >= 0
            )
            pictures = {
                "images": batch["image"],
                "reconstructions": detection.reconstructions,
                "unguided": detection.unguided,
            }
            on_cpu: dict[str, Any] = {
                name: None if part is None else part.cpu() for name, part in pictures.items()
            }
            yield batch, replace(decisions, **on_cpu)

    def prepare(self, images: Tensor | Sequence[ImageLike] | ImageLike) -> Tensor:
        """Images as of :meth:`predict` -> [N, 3, H, W] in [0, 1], of the model's input size.

        Raises:
            InputError: one of them cannot be read, or is no image.
        """
        if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
            images = list(images)
        elif not isinstance(images, list | tuple):
            images = [images]  # type: ignore[list-item]
        if not images:
            raise InputError("images: there are none")
        return torch.stack([self._prepared(image, i) for i, image in enumerate(images)])

    def _parts(self, images: Tensor | Sequence[ImageLike] | ImageLike) -> Sequence[Tensor]:
        prepared = self.prepare(images)
        self.model.check(prepared)  # an error names the number that an image has among all
        return prepared.split(AT_A_TIME)

    def save(self, file: str | Path) -> Path:
        """Write the detector file: settings, threshold, the validation images' scores, hashes of the weights. It replaces one.

        Fitted baselines, if there are any, go into a file beside it, ``detector.json.fitted.safetensors`` of ``detector.json``.
        """
        file, calibrated = Path(file), self._calibrated()
        fitted = None
        if self.model.baselines.needs_fit:
            beside = file.with_name(f"{file.name}.fitted.safetensors")
            state = {
                name: tensor.cpu().contiguous()
                for name, tensor in self.model.baselines.state_dict().items()
            }
            with atomic_write(beside) as unfinished:
                save_file(state, unfinished)
            fitted = {"file": beside.name, "sha256": pooch.file_hash(beside)}
        content = {
            "format": FORMAT,
            "version": VERSION,
            "score": self.score,
            "threshold": {
                name: value if math.isfinite(value) else None
                for name, value in asdict(calibrated).items()
            },
            "model": None
            if self.settings is None
            else _with_paths(self.settings, lambda path: str(path.absolute())),
            "method": method(self.model),
            "combination": self.combination.to_settings(),
            "preparation": self.preparation,
            "precision": self.precision,
            "tf32": self.tf32,
            "class_names": self.class_names,
            "weights": record.weights_hashes(self.model),
            "fitted": fitted,
            "about": {"made": record.timestamp(), "versions": record.package_versions()}
            | self.about,
            "calibration": _for_json(self.calibration),
            "reference": {name: _for_json(values) for name, values in self.reference.items()},
        }
        with atomic_write(file) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        return file

    @classmethod
    def load(
        cls,
        file: str | Path,
        model: DiffGuard | None = None,
        device: str | torch.device | None = None,
        **changes: Any,
    ) -> "Detector":
        """Read a detector file.

        Args:
            file: as :meth:`save` has written it; or the name of one that comes with the package: ``digits_ldm``.
            model: DiffGuard, where it was not made from a config; it has to have the same weights.
            device: none: a GPU if there is one.
            changes: to settings that scores do not depend on: ``slots``, ``compile``.

        Raises:
            InputError: it is no detector file, or the weights are not those that it was calibrated with.
        """
        file = shipped(file) or Path(file)
        content = _content(file)
        if model is not None and changes:
            raise InputError(
                f"{', '.join(changes)}: are settings of the model that is given; set them there"
            )
        try:
            if model is None:
                if content["model"] is None:
                    raise InputError(
                        f"{file}: was not made from a config; give the model: Detector.load(file, model=...)"
                    )
                for name in changes:
                    choose(
                        "setting that may be changed", name, list(record.CHANGEABLE_MODEL_SETTINGS)
                    )
                settings = _with_paths(content["model"], lambda path: _found(path, file.parent))
                model = diffguard_from(settings | changes)
            combination = Combination.from_settings(content["combination"])
            if content["fitted"]:
                _load_fitted(
                    file.with_name(content["fitted"]["file"]), content["fitted"]["sha256"], model
                )
            kept = [content[name] for name in ("preparation", "class_names", "precision", "tf32")]
            detector = cls(
                model,
                content["score"],
                content["threshold"]["tpr"],
                combination.fusion,
                combination.cascade,
                *kept,
            )
            _check_weights(file, content["weights"], model)  # in the precision that they have now
            _check_method(file, content["method"], model)
            detector.settings, detector.about = content["model"], content["about"]
            detector.reference = {
                name: np.array(values, dtype=np.float64)
                for name, values in content["reference"].items()
            }
            detector.calibration = np.sort(
                lowest_for_nan(np.array(content["calibration"], dtype=np.float64))
            )
            detector.calibrated = threshold(detector.calibration, detector.tpr)
            if detector.calibrated.value != content["threshold"]["value"] or (
                detector.is_combined and set(detector.reference) != set(model.score_names)
            ):
                raise KeyError("its threshold is not that of its scores")
        except InputError:
            raise
        except (
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise InputError(
                f"{file}: damaged, or of another version of diffguard_pl ({type(error).__name__}: {error})"
            ) from error
        try:
            return detector.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"device {device}: {str(error).strip().partition(chr(10))[0]}"
            ) from error

    def _calibrated(self) -> Threshold:
        if self.calibrated is None:
            raise InputError(
                "the detector has no threshold yet; call calibrate(loader) with in-distribution validation images"
            )
        return self.calibrated

    def _gate(self) -> Gate | None:
        """Which images to diffuse."""
        cascade = self.combination.cascade
        if cascade is None or self.score != CASCADE:
            return None
        return cascade.gate(self.reference[cascade.baseline])

    def _detected(
        self, batches: Iterable[Any], gate: Gate | None
    ) -> Iterator[tuple[Any, Detection | None]]:
        stream = self.model.stream()
        for given in batches:
            batch = as_batch(given, "image")
            images = batch["image"]
            with self._arithmetic():
                done = (
                    stream.push(images.to(self.device), None, batch, gate)
                    if len(images)
                    else stream.push_nothing(batch)
                )
            yield from done
        with self._arithmetic():
            done = stream.drain()
        yield from done

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """That of the calibration, whatever the caller has set."""
        mixed, half = self.precision.endswith("-mixed"), HALF.get(self.precision)
        products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
        with COMPUTING:
            before = products.allow_tf32, convolutions.allow_tf32
            products.allow_tf32 = convolutions.allow_tf32 = self.tf32
            try:
                with (
                    torch.no_grad(),
                    torch.autocast(self.device.type, half if mixed else None, enabled=mixed),
                ):
                    yield
            finally:
                products.allow_tf32, convolutions.allow_tf32 = before

    def _features(self, detection: Detection) -> Tensor:
        return torch.stack(
            [detection.scores[name].float().cpu() for name in self.score_names], dim=1
        )

    def _by_name(self, features: Tensor | np.ndarray) -> dict[str, np.ndarray]:
        features = torch.as_tensor(features)
        if features.ndim != 2 or features.shape[1] != len(self.score_names):
            raise InputError(
                f"features are {list(features.shape)}, expected [N, {len(self.score_names)}]: {', '.join(self.score_names)}"
            )
        return dict(zip(self.score_names, features.cpu().double().numpy().T, strict=True))

    def _decisions(
        self, scores: dict[str, np.ndarray], labels: Tensor, diffused: Tensor
    ) -> Decisions:
        if self.reference:
            scores = scores | self.combination(self.reference, scores)
        deciding, calibrated = scores[self.score], self._calibrated()
        names = [
            self.class_names[label] if 0 <= label < len(self.class_names) else str(label)
            for label in labels.tolist()
        ]
        return Decisions(
            accepted=torch.from_numpy(deciding >= calibrated.value),  # NaN is not
            labels=labels,
            label_names=names,
            scores=torch.from_numpy(deciding),
            p_values=torch.from_numpy(p_values(self.calibration, deciding)),
            diffused=diffused,
            threshold=calibrated.value,
            score_name=self.score,
            all_scores={name: torch.from_numpy(values) for name, values in scores.items()},
        )

    def _prepared(self, image: ImageLike, place: int) -> Tensor:
        where = str(image) if isinstance(image, str | Path) else f"image {place}"
        try:
            if isinstance(image, str | Path):
                image = read_image(Path(image), self.preparation["upright"])
            elif isinstance(image, np.ndarray):
                image = _as_tensor(image)
            elif self.preparation["upright"] and isinstance(image, Image.Image):
                image = ImageOps.exif_transpose(image)
            if not isinstance(image, Tensor | Image.Image):
                raise ValueError(
                    f"is a {type(image).__name__}; expected a path, a PIL image, an array or a tensor"
                )
            if isinstance(image, Tensor) and 0 in image.shape:
                raise ValueError(f"is {list(image.shape)}: empty")
            tensor = self.transform(_coloured(image) if isinstance(image, Tensor) else rgb(image))
        except Exception as error:  # whatever a file comes up with
            raise InputError(f"{where}: {reason(error)}") from error
        if tensor.ndim != 3 or len(tensor) != 3:
            raise InputError(f"{where}: is {list(tensor.shape)}, expected [3, H, W]")
        return tensor


def _as_tensor(array: np.ndarray) -> Tensor:
    """An array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (less its transparency) as [3, H, W] or [1, H, W]."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"is an array {list(array.shape)}, expected [H, W] or [H, W, 3]")
    tensor = torch.from_numpy(
        np.array(array[..., :3] if array.ndim == 3 else array[..., None])
    )  # it may be read-only
    return tensor.permute(2, 0, 1)


def _coloured(image: Tensor) -> Tensor:
    """[3, H, W] uint8 or floating; grey ones with three equal channels."""
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"is {image.dtype}, expected uint8, or floats in [0, 1]")
    return three_channels(image)
