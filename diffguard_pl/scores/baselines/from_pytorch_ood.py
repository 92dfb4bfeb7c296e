"""Detectors of pytorch-ood as baselines: ``pytorch_ood.detector.NNGuide``.

Those of logits, of features and of the classifier itself are supported. They are fitted to the
training features that all baselines share, of which some are kept, because pytorch-ood's own state
is of many kinds. Their outlier scores are negated.
"""

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...classifiers.classifier import Classifier
from ...errors import InputError, choose
from .base import Baseline, Inputs, Need, TrainingFeatures, linear_head
from .names import BASELINES

if TYPE_CHECKING:
    from pytorch_ood.api import Detector

KEPT = 50_000
"""Number of training images that detectors are fitted to at most, evenly spaced."""
TRAINING = ("pytorch_ood_features", "pytorch_ood_logits", "pytorch_ood_labels")
"""Names of the tensors that all fitted detectors share."""
REFUSED = {
    "Gram": "fits to the training images themselves",
    "MultiMahalanobis": "fits to the training images themselves",
    "MahalanobisODIN": "fits to the training images themselves",
    "NACUE": "fits to the training images themselves",
    "RankFeat": "needs feature maps before pooling",
    "MCD": "draws random numbers, so that a score depends on the batch",
    "WeightedEBO": "needs weights of its own training",
    "MCM": "needs text embeddings",
}
"""Why some detectors are not supported, by class name."""


@dataclass(frozen=True)
class _FromPytorchOOD(Baseline):
    """Base class of the adapters; each has a class of pytorch-ood.

    Attributes:
        detector: Class of the detector.
        settings: Arguments of the detector, by pytorch-ood's names.
    """

    detector: ClassVar[type["Detector"]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any] | None) -> "_FromPytorchOOD":
        """Build it from arguments by pytorch-ood's names; those absent or None are the defaults."""
        names = _parameters(cls.detector)
        known = [name for name in names if name not in PARTS]
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        for name in given:
            choose(f"hyper-parameter of baseline {cls.name}", name, known)
        return cls(given)

    def fit(self, training: TrainingFeatures) -> dict[str, Tensor]:
        if not self.tensors:
            return {}
        assert training.labels is not None
        count = len(training.features)
        kept = torch.arange(min(count, KEPT)) * count // min(count, KEPT)
        parts = (training.features, training.logits, training.labels)
        return {name: part[kept] for name, part in zip(TRAINING, parts, strict=True)}

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        detector = self._fitted_detector(inputs.classifier, fitted)
        return -_predict(detector, inputs).reshape(len(inputs.images))

    def _fitted_detector(self, classifier: Classifier, fitted: Mapping[str, Tensor]) -> "Detector":
        """Return the detector, built and fitted when it is first used."""
        weight = next(classifier.model.parameters(), classifier.mean)
        key = (classifier, classifier.mean.device, weight.dtype, *fitted.values())
        known = vars(self).get("_known")
        if known is None or not all(map(_is_same, known[0], key)):
            # A run is in inference mode, whose tensors could never have gradients.
            with torch.inference_mode(False):
                known = key, self._build(classifier, fitted)
            object.__setattr__(self, "_known", known)
        return known[1]

    def _build(self, classifier: Classifier, fitted: Mapping[str, Tensor]) -> "Detector":
        from pytorch_ood.api import FeatureMapsDetector

        parts = {
            name: PARTS[name](classifier) for name in _parameters(self.detector) if name in PARTS
        }
        if issubclass(self.detector, FeatureMapsDetector):
            parts["head"] = nn.Sequential(nn.Flatten(), parts["head"])
        try:
            detector = self.detector(**parts, **self.settings)
            detector.to(classifier.mean.device)
            if fitted:
                _fit(detector, *fitted.values())
        except Exception as error:  # a library's, of any kind
            message = " ".join(str(error).split())[:200]
            raise InputError(
                f"baselines: {self.name}: pytorch-ood refuses it ({message}); correct its settings "
                "or leave it out"
            ) from error
        return detector


def _is_same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, torch.device) and a == b)


class _Logits(nn.Module):
    """The classifier as a module of images, whose weights have gradients."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = deepcopy(classifier).requires_grad_()

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.logits_at_any_size(images)


def _linear(classifier: Classifier) -> nn.Linear:
    """Return a copy of the linear head."""
    weight, bias = linear_head(classifier)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head.requires_grad_(False)


PARTS: dict[str, Callable[[Classifier], Any]] = {
    # Logits and features are given as they are.
    "encoder": lambda _: nn.Identity(),
    "backbone": lambda _: nn.Identity(),
    "model": _Logits,
    "head": _linear,
    "w": lambda classifier: linear_head(classifier)[0],
    "b": lambda classifier: linear_head(classifier)[1],
}
"""Parts of a classifier by the name that pytorch-ood gives the argument."""


def _parameters(detector: type["Detector"]) -> list[str]:
    signature = inspect.signature(detector.__init__)
    return [name for name in signature.parameters if name != "self"]


def _fit(detector: "Detector", features: Tensor, logits: Tensor, labels: Tensor) -> None:
    from pytorch_ood.api import FeaturesDetector, LogitsDetector

    if isinstance(detector, LogitsDetector):
        detector.fit_logits(logits.float(), labels)
    elif isinstance(detector, FeaturesDetector):
        detector.fit_features(features.float(), labels)
    else:
        detector.fit_feature_maps(features.float()[..., None, None], labels)


def _predict(detector: "Detector", inputs: Inputs) -> Tensor:
    from pytorch_ood.api import FeatureMapsDetector, FeaturesDetector, LogitsDetector

    if isinstance(detector, LogitsDetector):
        # pytorch-ood 0.4's OpenMax knows the distances to those centres alone whose class some
        # image of the batch has: add an image of each class.
        every_class = torch.eye(inputs.logits.shape[1]).to(inputs.logits)
        return detector.predict_logits(torch.cat([inputs.logits, every_class]))[: -len(every_class)]
    if isinstance(detector, FeaturesDetector):
        return detector.predict_features(inputs.features)
    if isinstance(detector, FeatureMapsDetector):
        return detector.predict_feature_maps(inputs.features[..., None, None])
    with torch.inference_mode(False), torch.enable_grad():
        return detector.predict(inputs.images.clone()).detach()


@cache
def adapter(detector: type["Detector"]) -> type[Baseline]:
    """Return the baseline of a class of pytorch-ood.

    Raises:
        InputError: It cannot be computed of a classifier's logits, features or gradients.
    """
    from pytorch_ood.api import GradientDetector, LogitsDetector

    if detector.__name__ in REFUSED:
        raise InputError(
            f"baselines: {detector.__name__} of pytorch-ood {REFUSED[detector.__name__]}; "
            "leave it out"
        )
    needs: set[Need] = {"gradients"} if issubclass(detector, GradientDetector) else {"features"}
    if issubclass(detector, LogitsDetector):
        needs = {"logits"}
    if {"head", "w", "b"} & {*_parameters(detector)}:
        needs.add("head")
    if detector.requires_fit:
        needs |= {"training features", "labels"}
    name = detector.__name__.lower()
    if name in BASELINES:
        name = f"{name}_pytorch_ood"
    return type(
        detector.__name__,
        (_FromPytorchOOD,),
        {
            "name": name,
            "needs": frozenset(needs),
            "tensors": TRAINING if detector.requires_fit else (),
            "detector": detector,
            "__doc__": f"{detector.__name__} of pytorch-ood.",
        },
    )
