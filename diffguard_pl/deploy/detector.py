"""Deployable OOD detector: DiffGuard plus a threshold calibrated on in-distribution images.

    detector = Detector.load("detector.json")            # written by `diffguard-pl calibrate`
    decisions = detector.predict([image, "photo.jpg"])   # PIL images, paths, arrays, tensors
    decisions.accepted, decisions.label_names, decisions.p_values

In Python alone: ``Detector(diffguard).calibrate(validation_loader).save("detector.json")``. As in
pytorch-ood, a detector also works on features: the scores of an image, in the order of
``score_names``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..datamodules.reading import ImageLike, ImagePreparation, reason
from ..description import describe_method
from ..diffguard import DiffGuard
from ..errors import InputError, choose
from ..runs.record import package_versions, timestamp, weights_hashes
from ..scores.combination import CASCADE, Cascade, Combination, Fusion
from ..scores.conformal import Threshold, check_tpr, lowest_for_nan, p_values, threshold
from ..scores.exchangeability import batch_p_value
from ..stages import Detection, Gates, as_batch
from . import hub
from .decisions import Decisions
from .detector_file import (
    DetectorFile,
    reporting_damage,
    write_fitted,
)
from .precision import HALF_PRECISIONS, PRECISIONS, computing_in

CLASSIFIER_BATCH = 64
"""Number of images that the classifier processes at a time."""


class Detector:
    """Accepts or rejects images.

    Threads may share a detector; they take turns at the networks.

    Args:
        model: DiffGuard. Baselines and path scores that need training images must be fitted.
        score: Name of the deciding score. Defaults to the cascade if there is one, else the fusion
            if there is one, else the first discrepancy.
        tpr: Fraction of in-distribution images to accept (true positive rate). Defaults to 0.95.
        fusion: Score that combines others. Defaults to none.
        cascade: Score that runs the diffusion model only where a baseline is unsure. Its ``skip``
            has no effect here. Defaults to none.
        preparation: Settings of :class:`~diffguard_pl.datamodules.reading.ImagePreparation`.
            Defaults to resizing the short side to the model's input size and a centre crop.
        class_names: Names of the classes. Defaults to those of the classifier, if it has any.
        precision: Precision of the networks, by Lightning's names. Defaults to ``32-true``.
        tf32: Whether float32 products on a GPU may round their factors to TF32, see
            :class:`~diffguard_pl.DiffGuardModule`. Defaults to False.

    Attributes:
        calibrated: Threshold with its confidence intervals; None before :meth:`calibrate`.
        calibration: Deciding scores of the validation images that set the threshold, ascending.
        reference: Scores by name of the validation images that a combination is calibrated on.
            Other images set the threshold.
        settings: Settings of the model as in a config; None if it was not built from one.
        about: Provenance for the detector file: versions, data.
    """

    def __init__(
        self,
        model: DiffGuard,
        score: str | None = None,
        tpr: float = 0.95,
        fusion: Fusion | None = None,
        cascade: Cascade | None = None,
        preparation: ImagePreparation | Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        precision: str | None = None,
        tf32: bool = False,
    ):
        if not isinstance(model, DiffGuard):
            raise InputError(
                f"Detector: model must be a DiffGuard, not {model!r:.80}; "
                "use Detector.load(...) to read a detector file"
            )
        self.model = model.eval()
        if cascade:
            # With skip, a run leaves NaN for images that were not diffused. A detector applies
            # one rule to every image, including those of the calibration.
            cascade = replace(cascade, skip=False)
        self.combination = Combination.checked(
            fusion,
            cascade,
            model.diffusion_score_names,
            model.baseline_names,
            model.path_scores.early_names,
        )
        names = [*model.score_names, *self.combination.names]
        self.score = score or (self.combination.names[-1] if self.combination else names[0])
        choose("score", self.score, names)
        check_tpr(tpr)
        self.tpr = tpr

        self.preparation = _checked_preparation(preparation, model.input_size)
        self.class_names = list(class_names or model.classifier.class_names or [])
        if self.class_names and len(self.class_names) != model.classifier.num_classes:
            raise InputError(
                f"class_names: must be {model.classifier.num_classes} names, one per class, "
                f"not {len(self.class_names)}"
            )
        self.precision, self.tf32 = precision or "32-true", tf32
        choose("precision", self.precision, PRECISIONS)
        if self.precision in ("bf16-true", "16-true"):
            model.networks_to(HALF_PRECISIONS[self.precision])

        self.calibrated: Threshold | None = None
        self.calibration = np.zeros(0)
        self.reference: dict[str, np.ndarray] = {}
        self.settings: dict[str, Any] | None = None
        self.about: dict[str, Any] = {}

    @property
    def score_names(self) -> list[str]:
        """Names of the K features of an image: all scores that the model computes."""
        return self.model.score_names

    @property
    def is_combined(self) -> bool:
        """Whether the deciding score is a fusion or a cascade.

        Half of the validation images then calibrate the combination, the others the threshold.
        """
        return self.score in self.combination.names

    @property
    def threshold(self) -> float:
        """Images whose score is below it are rejected."""
        return self._checked_threshold().value

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.model.classifier.mean.device

    def to(self, device: torch.device | str) -> "Detector":
        """Move the networks to a device."""
        self.model.to(device)
        return self

    # ---------------------------------------------------------------------------- calibration

    def calibrate(self, loader: Iterable[Any]) -> "Detector":
        """Set the threshold on in-distribution images.

        Args:
            loader: Batches of in-distribution images that neither the classifier nor the baselines
                were trained on: [N, 3, H, W] in [0, 1], pairs of these and labels, or dicts with
                ``image``. Labels are not used.

        Raises:
            InputError: Too few images for the TPR, or images the model does not take.
        """
        features = [self._features_of(detection) for _, detection in self._detect(loader, None)]
        features = [batch for batch in features if len(batch)]
        if not features:
            raise InputError("calibrate: the loader has no images; pass validation images")
        return self.calibrate_features(torch.cat(features))

    def calibrate_features(self, features: Tensor) -> "Detector":
        """Set the threshold on known scores of in-distribution images.

        Args:
            features: Scores [N, K] in the order of ``score_names``.
        """
        scores = self._by_name(features)
        reference: dict[str, np.ndarray] = {}
        if self.is_combined:
            # Images that calibrate the combination would set an optimistic threshold, so halve
            # them, at random as their order may be meaningful.
            order = np.random.default_rng(0).permutation(len(features))
            of_combination, of_threshold = np.split(order, [len(order) // 2])
            reference = {name: values[of_combination] for name, values in scores.items()}
            others = {name: values[of_threshold] for name, values in scores.items()}
            deciding = self.combination(reference, others)[self.score]
        else:
            deciding = scores[self.score]
        if len(deciding) and not np.isfinite(deciding).any():
            raise InputError(
                f"calibrate: the score {self.score} is NaN or infinite for every image; check the "
                "checkpoints of classifier and backbone, and the precision"
            )
        try:
            self.calibrated = threshold(deciding, self.tpr)
        except InputError as error:
            if not (self._without_counterpart and np.isnan(deciding).any()):
                raise
            names = ", ".join(sorted(self._without_counterpart)[:8])
            raise InputError(
                f"{error}; model.class_map has no class for {names}: leave their images out, or "
                "give them a class"
            ) from error
        self.calibration, self.reference = np.sort(lowest_for_nan(deciding)), reference
        return self

    def fit_path_scores(self, loader: Iterable[Any]) -> "Detector":
        """Fit the path scores that need it to in-distribution images.

        See :meth:`diffguard_pl.DiffGuard.fit_path_scores`.
        """
        with self._computing():
            self.model.fit_path_scores(loader)
        return self

    def with_tpr(self, tpr: float) -> "Detector":
        """Set the threshold for another TPR on the same validation images."""
        self._checked_threshold()
        self.calibrated, self.tpr = threshold(self.calibration, tpr), tpr
        return self

    def fit_baselines(self, loader: Iterable[Any]) -> "Detector":
        """Fit the baselines that need training images.

        See :meth:`diffguard_pl.DiffGuard.fit_baselines`.
        """
        with self._computing():
            self.model.fit_baselines(loader)
        return self

    # ------------------------------------------------------------------------------- decisions

    def predict(self, images: Tensor | Sequence[ImageLike] | ImageLike) -> Decisions:
        """Decide on images.

        Args:
            images: [N, 3, H, W] in [0, 1] or uint8, a list of images of any sizes, or one image.

        Raises:
            InputError: An image cannot be read, or the detector is not calibrated.
        """
        self._checked_threshold()
        decided = self.decide(self._prepared_batches(images))
        return Decisions.concatenate([found for _, found in decided if found is not None])

    def predict_features(self, features: Tensor) -> Decisions:
        """Decide by known scores.

        Args:
            features: Scores [N, K] in the order of ``score_names``. Discrepancies may be NaN where
                a cascade does not need them.
        """
        self._checked_threshold()
        scores, count = self._by_name(features), len(features)
        labels, diffused = torch.full((count,), -1), torch.zeros(count, dtype=torch.bool)
        return self._decisions(scores, labels, diffused)

    def __call__(self, images: Tensor | Sequence[ImageLike] | ImageLike) -> Tensor:
        """Return outlier scores [N], higher = more out-of-distribution, as in pytorch-ood."""
        return self.predict(images).outlier_scores

    def features(self, images: Tensor | Sequence[ImageLike] | ImageLike) -> Tensor:
        """Return all scores [N, K] in the order of ``score_names``, on the CPU.

        Every image goes through the diffusion model.
        """
        detected = self._detect(self._prepared_batches(images), None)
        return torch.cat([self._features_of(detection) for _, detection in detected])

    def decide(
        self, batches: Iterable[Any]
    ) -> Iterator[tuple[Mapping[str, Any], Decisions | None]]:
        """Decide on batches of images, in their order.

        The diffusion model's batch is filled across the boundaries of the batches.

        Args:
            batches: Dicts with ``image`` [N, 3, H, W] in [0, 1], of the model's input size, and any
                other keys; or images; or pairs of images and labels. N may be 0.

        Yields:
            The batch as a dict, and its decisions; None if it has no images.
        """
        self._checked_threshold()
        for batch, detection in self._detect(batches, self._gates()):
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
            guided, unguided = detection.reconstructions, detection.unguided
            yield (
                batch,
                replace(
                    decisions,
                    images=batch["image"].cpu(),
                    reconstructions=None if guided is None else guided.cpu(),
                    unguided=None if unguided is None else unguided.cpu(),
                ),
            )

    def prepare(self, images: Tensor | Sequence[ImageLike] | ImageLike) -> Tensor:
        """Return images, as of :meth:`predict`, as [N, 3, H, W] of the model's input size.

        Raises:
            InputError: An image cannot be read, or has an unsupported type or shape.
        """
        if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
            images = list(images)
        elif not isinstance(images, list | tuple):
            images = [images]
        if not images:
            raise InputError("images: is empty; pass at least one image")
        prepared = []
        for i, image in enumerate(images):
            name = str(image) if isinstance(image, str | Path) else f"image {i}"
            try:
                prepared.append(self.preparation(image))
            except Exception as error:  # files and array types may raise anything
                raise InputError(f"{name}: {reason(error)}") from error
        return torch.stack(prepared)

    # ---------------------------------------------------------------------------- detector file

    def save(self, file: str | Path) -> Path:
        """Write the detector file, replacing an earlier one.

        It holds settings, threshold, the validation images' scores and hashes of the weights.
        Fitted scores go into a file beside it: ``detector.json.fitted.safetensors``.
        """
        path = Path(file)
        DetectorFile(
            score=self.score,
            threshold=self._checked_threshold(),
            model=self.settings,
            method=describe_method(self.model),
            combination=self.combination.to_settings(),
            preparation=self.preparation,
            precision=self.precision,
            tf32=self.tf32,
            class_names=self.class_names,
            weights=weights_hashes(self.model),
            fitted=write_fitted(path, self.model),
            about={"made": timestamp(), "versions": package_versions()} | self.about,
            calibration=self.calibration,
            reference=self.reference,
        ).write(path)
        return path

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
            file: Path of a file that :meth:`save` wrote, the name of a detector that comes with
                the package (``digits_ldm``), or ``hf://owner/name``, with ``@revision`` if it is
                not the latest, of a detector on the Hugging Face Hub.
            model: DiffGuard with the same weights, if it was not built from a config.
            device: Device to compute on. Defaults to a GPU if there is one.
            changes: New values of settings that scores do not depend on: ``slots``, ``compile``.

        Raises:
            InputError: The file is not a detector file, or the weights or settings are not those of
                the calibration.
        """
        path = hub.find_detector_file(file)
        content = DetectorFile.read(path)
        if model is None:
            model = content.build_model(path, changes)
        elif changes:
            raise InputError(
                f"{', '.join(changes)}: cannot be changed together with model; set it there"
            )
        with reporting_damage(path):
            content.verify_method(path, model)
        with reporting_damage(path, "fitted"):
            content.load_fitted(path, model)
        with reporting_damage(path, "combination"):
            combination = Combination.from_settings(content.combination)
        with reporting_damage(path):
            detector = cls(
                model,
                content.score,
                content.threshold.tpr,
                combination.fusion,
                combination.cascade,
                content.preparation,
                content.class_names,
                content.precision,
                content.tf32,
            )
            # only now have the weights the precision of the calibration
            content.verify_weights(path, model)
            if detector.is_combined and set(content.reference) != set(model.score_names):
                raise ValueError("the reference does not have the scores of the model")
        detector.calibrated = content.threshold
        detector.calibration, detector.reference = content.calibration, content.reference
        detector.settings, detector.about = content.model, content.about
        try:
            return detector.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, AssertionError) as error:
            message = str(error).strip().splitlines()[0]
            raise InputError(f"device {device}: {message}") from error

    @classmethod
    def from_pretrained(
        cls, repo: str, revision: str | None = None, token: str | None = None, **settings: Any
    ) -> "Detector":
        """Load a detector from the Hugging Face Hub.

        Args:
            repo: Repository, ``owner/name``.
            revision: Branch, tag or commit. Defaults to the latest.
            token: Token of the Hub, for a private repository. Defaults to that of `hf auth login`.
            settings: Further arguments of :meth:`load`.

        Raises:
            InputError: As :meth:`load`; or the repository or the revision does not exist.
        """
        address = f"{hub.SCHEME}{repo}" + (f"@{revision}" if revision else "")
        return cls.load(hub.download(address, token), **settings)

    def push_to_hub(self, repo: str, **settings: Any) -> str:
        """Upload the detector to the Hugging Face Hub, with a model card.

        The repository gets the detector file, the tensors of fitted scores as safetensors, and a
        README with threshold, data and results.

        Args:
            repo: Repository, ``owner/name``; created if it does not exist.
            settings: ``with_weights`` (whether to upload checkpoints that are files of this
                machine; weights that have a name or an address are never uploaded), ``run`` (folder
                of a run whose results the card shows), ``data`` (a sentence on the in-distribution
                images), ``licence`` (identifier of the Hub), ``private``, ``token``, ``revision``
                (branch), ``message``.

        Returns:
            URL of the commit.

        Raises:
            InputError: The detector is not calibrated or was not made from a config, a checkpoint
                is a file of this machine, or the upload fails.
        """
        return hub.push(self, repo, **settings)

    # ------------------------------------------------------------------------------------ parts

    def _checked_threshold(self) -> Threshold:
        if self.calibrated is None:
            raise InputError(
                "the detector has no threshold; call calibrate(loader) with in-distribution "
                "validation images"
            )
        return self.calibrated

    def _prepared_batches(
        self, images: Tensor | Sequence[ImageLike] | ImageLike
    ) -> Sequence[Tensor]:
        prepared = self.prepare(images)
        self.model.check(prepared)  # before the split: errors give an image's number among all
        return prepared.split(CLASSIFIER_BATCH)

    def _gates(self) -> Gates | None:
        """Return which images to diffuse and to reconstruct; None: all of them."""
        cascade = self.combination.cascade
        if cascade is None or self.score != CASCADE:
            return None
        return self.model.gates(cascade, self.reference)

    def _detect(
        self, batches: Iterable[Any], gates: Gates | None
    ) -> Iterator[tuple[Any, Detection | None]]:
        """Yield each batch with its detection; None if it has no images."""
        stream = self.model.stream()
        for given in batches:
            batch = as_batch(given, "image")
            images = batch["image"]
            with self._computing():
                if len(images):
                    finished = stream.push(images.to(self.device), None, batch, gates)
                else:
                    finished = stream.push_nothing(batch)
            # outside the context: the caller's code runs between two batches
            yield from finished
        with self._computing():
            finished = stream.drain()
        yield from finished

    def _computing(self) -> AbstractContextManager[None]:
        return computing_in(self.precision, self.tf32, self.device)

    def _features_of(self, detection: Detection | None) -> Tensor:
        if detection is None:
            return torch.zeros(0, len(self.score_names))
        columns = [detection.scores[name].float().cpu() for name in self.score_names]
        return torch.stack(columns, dim=1)

    def batch_p_value(self, scores: Tensor | np.ndarray) -> float:
        """Return the p-value of a batch: probability that in-distribution batches score so low.

        Of the rank-sum test between the scores and those of the calibration; see
        :func:`~diffguard_pl.scores.exchangeability.batch_p_value`.

        Args:
            scores: Deciding scores [N], such as those of :meth:`predict`, 1 or more.
        """
        return batch_p_value(self.calibration, torch.as_tensor(scores).cpu().double().numpy())

    def _by_name(self, features: Tensor | np.ndarray) -> dict[str, np.ndarray]:
        features = torch.as_tensor(features)
        names = self.score_names
        if features.ndim != 2 or features.shape[1] != len(names):
            raise InputError(
                f"features: are {list(features.shape)}, must be [N, {len(names)}] with the scores "
                f"{', '.join(names)}"
            )
        return dict(zip(names, features.cpu().double().numpy().T, strict=True))

    def _decisions(
        self, scores: dict[str, np.ndarray], labels: Tensor, diffused: Tensor
    ) -> Decisions:
        if self.reference:
            scores = scores | self.combination(self.reference, scores)
        deciding, cut = scores[self.score], self.threshold
        return Decisions(
            accepted=torch.from_numpy(deciding >= cut),  # NaN is rejected
            labels=labels,
            label_names=[self._label_name(label) for label in labels.tolist()],
            scores=torch.from_numpy(deciding),
            p_values=torch.from_numpy(p_values(self.calibration, deciding)),
            diffused=diffused,
            threshold=cut,
            score_name=self.score,
            all_scores={name: torch.from_numpy(values) for name, values in scores.items()},
            without_counterpart=self._without_counterpart,
        )

    @property
    def _without_counterpart(self) -> frozenset[str]:
        """Names of the classes that the diffusion model does not have."""
        class_map = self.model.class_map
        if class_map is None:
            return frozenset()
        missing = (i for i, label in enumerate(class_map.classes) if label is None)
        return frozenset(map(self._label_name, missing))

    def _label_name(self, label: int) -> str:
        is_named = 0 <= label < len(self.class_names)
        return self.class_names[label] if is_named else str(label)


def _checked_preparation(
    given: ImagePreparation | Mapping[str, Any] | None, size: int
) -> ImagePreparation:
    """Return the preparation for a model with an input size, in pixels."""
    if isinstance(given, ImagePreparation):
        preparation = given
    else:
        settings: dict[str, Any] = asdict(ImagePreparation(image_size=size, resize=size))
        for name in given or {}:
            choose("setting of preparation", name, list(settings))
        preparation = ImagePreparation(**settings | dict(given or {}))
    if preparation.image_size != size:
        raise InputError(
            f"preparation: image_size={preparation.image_size} must be {size}, the model's input "
            "size"
        )
    return preparation
