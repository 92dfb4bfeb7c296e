"""Any number of baselines in one module, computed from the pass that DiffGuard makes anyway.

Definitions and defaults are those of OpenOOD v1.5 (Zhang et al. 2023, arXiv 2306.09301), whose
ImageNet configuration serves all datasets; ``entropy`` it does not have. All are fitted to the same
images, those of training.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...classifiers.classifier import Classifier, View
from ...errors import InputError
from ..import_path import import_object
from ..named_scores import NamedScores, find_imported, find_registered, settings_by_name
from .base import Baseline, Inputs, TrainingFeatures
from .names import BASELINES
from .statistics import chunks


class Baselines(NamedScores[Baseline]):
    """Any number of baselines of one classifier.

    Args:
        names: Names of :data:`.names.BASELINES`, or import paths of other :class:`.base.Baseline`
            classes; or a mapping from these to hyper-parameters by OpenOOD's names, such as
            ``{"knn": {"K": 20}}``, where None or an absent one stands for the default.
        classifier: Classifier under protection. ``react``, ``ash``, ``scale`` and ``vim`` need one
            whose logits are a linear function of its features; ``ensemble`` needs an ensemble.

    Attributes:
        names: Names of the scores.
        hyperparameters: Hyper-parameters of each score, defaults included, by the given name.
        needs_fit: Whether any score is fitted to training images.

    Raises:
        InputError: A name or a hyper-parameter is unknown, or a score does not suit the classifier.
    """

    setting = "baselines"

    def __init__(
        self,
        names: Sequence[str] | Mapping[str, Mapping[str, Any] | None],
        classifier: Classifier,
    ):
        settings = settings_by_name("baselines", names, BASELINES)
        baselines = [find(name).from_settings(of) for name, of in settings.items()]
        if classifier.members == 1 and (names_of := _needing("ensemble", baselines)):
            raise InputError(
                f"baselines: {', '.join(names_of)} needs an ensemble; set classifier.checkpoint to "
                "several files, or use msp"
            )
        if any("head" in baseline.needs for baseline in baselines):
            width = check_linear_head(classifier, _needing("head", baselines))
            baselines = [
                baseline.for_width(width) if "head" in baseline.needs else baseline
                for baseline in baselines
            ]
        super().__init__(settings, baselines)
        # In a tuple, so that the classifier's weights are not part of this module's state.
        self._classifier = (classifier,)
        self.needs_fit = bool(_needing("training features", baselines))

    @torch.no_grad()
    def forward(self, view: View, images: Tensor) -> dict[str, Tensor]:
        """Compute the scores [N] by name, in float32 whatever the precision of the networks.

        Args:
            view: The classifier's view of the images.
            images: [N, 3, H, W] in [0, 1], for baselines that make passes of their own.

        Raises:
            InputError: A score is not fitted yet.
        """
        if self.unfitted:
            raise InputError(
                f"baselines: {', '.join(self.unfitted)} must be fitted to training images; set "
                "data.train, or call DiffGuard.fit_baselines"
            )
        classifier = self._classifier[0]
        inputs = Inputs(
            logits=view.logits.float(),
            features=view.features.float(),
            maps=view.maps,
            images=images,
            classifier=classifier,
            member_logits=None if view.member_logits is None else view.member_logits.float(),
        )
        scores = {}
        with torch.autocast(view.logits.device.type, enabled=False):
            for name, baseline in self._scores.items():
                # TF32 is off for the arithmetic of a score, not for passes of the classifier.
                passes = "gradients" in baseline.needs
                with nullcontext() if passes else without_tf32():
                    scores[name] = baseline.score(inputs, self._fitted(baseline)).float()
        return scores

    @torch.no_grad()
    def fit_features(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Fit to the classifier's view of training images, which may be a million.

        Args:
            features: [N, D] in float16 or float32.
            logits: [N, classes].
            labels: [N], -1 where unknown; ``mahalanobis`` and ``rmds`` need all of them.

        Raises:
            InputError: The tensors do not fit together, or the images do not suffice.
        """
        baselines, classifier = list(self._scores.values()), self._classifier[0]
        _check_features(classifier, features, logits, labels)
        if names := _needing("head", baselines):
            _check_width(classifier, features, names)
        names = _needing("labels", baselines)
        if names:
            _check_labels(labels, classifier.num_classes, names)
        training = TrainingFeatures(features, logits, labels if names else None, classifier)
        with torch.inference_mode(False):
            # Everything is computed before anything is set: a failure leaves the state as it was.
            fitted: dict[str, Tensor] = {}
            for baseline in baselines:
                fitted |= baseline.fit(training)
            for tensor, value in fitted.items():
                setattr(self, tensor, value.to(classifier.mean.device).contiguous())

    def _key(self, score: Baseline, tensor: str) -> str:
        # One flat namespace: baselines may share a tensor, and files stay valid.
        return tensor

    def _device_of_fitted(self) -> torch.device:
        return self._classifier[0].mean.device

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load fitted tensors, and check that they belong to these hyper-parameters."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, baseline in self._scores.items():
            if name not in self.unfitted:
                baseline.check_fitted(self._fitted(baseline))


def find(name: str) -> type[Baseline]:
    """Return the class of a baseline by its name, or by the import path of another one.

    Raises:
        InputError: The name is unknown, or the path does not lead to a subclass of `Baseline`.
    """
    if "." not in name:
        return find_registered(Baseline, name, BASELINES, str(__package__))
    other = import_object("baselines", name)
    if isinstance(other, type) and _is_of_pytorch_ood(other):
        from .from_pytorch_ood import adapter

        return adapter(other)
    return find_imported(Baseline, name, BASELINES, ["name", "needs"])


def _is_of_pytorch_ood(found: type) -> bool:
    """Return whether a class is a detector of pytorch-ood, without importing it."""
    bases = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
    return "pytorch_ood.api.Detector" in bases


def check_linear_head(classifier: Classifier, names: Sequence[str]) -> int:
    """Check that the features and the linear head give the logits, and return D of features [N, D].

    Raises:
        InputError: They do not, on a grey image or on a ramp.
    """
    needing = f"baselines: {', '.join(names)}"
    if classifier.members > 1:
        raise InputError(
            f"{needing} cannot be computed of an ensemble, whose logits are not linear in its "
            "features; leave them out, or set classifier.checkpoint to a single file"
        )
    head = classifier.linear_head()
    if head is None:
        raise InputError(
            f"{needing} cannot be computed: the classifier has no linear layer that gives its "
            "logits; leave them out"
        )
    # A grey image and a ramp: two different inputs at the size that the model takes.
    size, device = classifier.input_size, classifier.mean.device
    ramp = torch.linspace(0, 1, 3 * size * size, device=device).view(1, 3, size, size)
    with torch.autocast(device.type, enabled=False):
        view = classifier.view(torch.cat([torch.full_like(ramp, 0.5), ramp]))
        error = math.inf
        if head[0].shape[1] == view.features.shape[1]:
            error = float((linear(view.features, *head) - view.logits).abs().amax())
    # Rounding of a model in half precision is no reason to refuse it.
    dtype = next(classifier.model.parameters()).dtype
    tolerance = max(1e-3, 4 * torch.finfo(dtype).eps) * float(view.logits.abs().amax())
    if not error <= tolerance:
        raise InputError(
            f"{needing} cannot be computed: the logits are not what the linear layer "
            f"{' and '.join(classifier.heads)} gives of the features; leave them out"
        )
    return view.features.shape[1]


def _needing(need: str, baselines: Sequence[Baseline]) -> list[str]:
    return [baseline.name for baseline in baselines if need in baseline.needs]


def _check_features(
    classifier: Classifier, features: Tensor, logits: Tensor, labels: Tensor
) -> None:
    """Raise an `InputError` unless the tensors are of the same images, and finite."""
    classes = classifier.num_classes
    if (
        features.ndim != 2
        or logits.shape != (len(features), classes)
        or labels.shape != features.shape[:1]
    ):
        raise InputError(
            f"baselines: features {list(features.shape)}, logits {list(logits.shape)} and labels "
            f"{list(labels.shape)} must be [N, D], [N, {classes}] and [N]"
        )
    if len(features) == 0:
        raise InputError("baselines: no training images to fit to; set data.train to some")
    for what, values in {"features": features, "logits": logits}.items():
        bad = sum(int((~part.isfinite()).any(dim=1).sum()) for part in chunks(values))
        if bad:
            raise InputError(
                f"baselines: the {what} of {bad} training images are NaN or infinite; check the "
                "images, or use float32"
            )


def _check_width(classifier: Classifier, features: Tensor, names: Sequence[str]) -> None:
    """Raise an `InputError` unless the linear head takes features [N, D]."""
    head = classifier.linear_head()
    if head is not None and features.shape[1] != head[0].shape[1]:
        raise InputError(
            f"baselines: {', '.join(names)}: training features have {features.shape[1]} "
            f"dimensions; must be {head[0].shape[1]}, as the classifier's"
        )


def _check_labels(labels: Tensor, classes: int, names: Sequence[str]) -> None:
    """Raise an `InputError` unless every image has a label and every class has an image."""
    needing = f"baselines: {', '.join(names)}"
    outside = int(((labels < 0) | (labels >= classes)).sum())
    if labels.is_floating_point() or outside:
        raise InputError(
            f"{needing}: training labels must be whole numbers from 0 to {classes - 1}; {outside} "
            f"of {len(labels)} are not; use a labelled dataset, or leave these scores out"
        )
    # Every class needs a mean.
    images = torch.bincount(labels.flatten(), minlength=classes)
    missing = (images == 0).nonzero().flatten().tolist()
    if missing:
        some = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        raise InputError(
            f"{needing}: no training images of {len(missing)} of {classes} classes: {some}; use "
            "images of every class, or leave these scores out"
        )


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute matrix products in full float32: after whitening, TF32's rounding would outweigh
    the smallest directions."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        yield
    finally:
        matmul.allow_tf32 = before
