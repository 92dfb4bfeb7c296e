"""Base class of the baselines, and what they are fitted to and computed from."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...classifiers.classifier import Classifier
from ..hyperparameters import WithHyperparameters
from .statistics import Moments, whiten

Need = Literal[
    "logits", "features", "maps", "head", "gradients", "training features", "labels", "ensemble"
]


class Inputs(NamedTuple):
    """Batch of images and the classifier's view of it, from which a baseline is computed.

    Attributes:
        logits: [N, classes], float32.
        features: [N, D], float32.
        maps: Feature maps [N, C, h, w] of each map layer.
        images: [N, 3, H, W] in [0, 1].
        classifier: Classifier under protection.
        member_logits: Logits of the members of an ensemble [N, M, classes], float32; None for a
            single classifier.
    """

    logits: Tensor
    features: Tensor
    maps: list[Tensor]
    images: Tensor
    classifier: Classifier
    member_logits: Tensor | None = None

    def energy_of(self, features: Tensor) -> Tensor:
        """Compute the energy score [N] of changed features [N, D] through the linear head."""
        return linear(features, *linear_head(self.classifier)).logsumexp(dim=1)


@dataclass(frozen=True)
class TrainingFeatures:
    """The classifier's view of its training images. Statistics are computed once for all baselines.

    Attributes:
        features: [N, D], float16 or float32.
        logits: [N, classes].
        labels: [N]; None if no baseline needs them.
        classifier: Classifier that computed them.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor | None
    classifier: Classifier

    @cached_property
    def moments(self) -> Moments:
        """First and second moments of the features, by class if labels are known."""
        device = self.classifier.mean.device
        if device.type == "mps":  # has no float64
            device = torch.device("cpu")
        labels = self.labels
        if labels is None:
            labels = torch.zeros(len(self.features), dtype=torch.long)
        return Moments.of(self.features, labels, device)

    @cached_property
    def class_whitening(self) -> Tensor:
        """Whitening [D, r] of the covariance within classes, float64."""
        return whiten(self.moments.within / len(self.features))


@dataclass(frozen=True)
class Baseline(WithHyperparameters):
    """OOD score of the classifier alone. Its fields are the hyper-parameters.

    To add one: subclass it in the file of its family and register it in :mod:`.names`. A class
    outside this package is named by its import path, ``my_package.module.MyScore``.

    Attributes:
        name: Name of the score in settings and tables.
        needs: What :meth:`score` and :meth:`fit` look at. ``gradients`` stands for passes of the
            classifier of its own, ``head`` for logits that are linear in the features, ``ensemble``
            for the logits of the members of an ensemble.
        tensors: Names of the tensors that :meth:`fit` returns, unique among all baselines unless
            two share a tensor.
    """

    setting: ClassVar[str] = "baselines"
    kind: ClassVar[str] = "baseline"
    needs: ClassVar[frozenset[Need]]
    tensors: ClassVar[tuple[str, ...]] = ()

    def for_width(self, width: int) -> "Baseline":
        """Check the hyper-parameters, and set those that depend on D, for features [N, D].

        Called for baselines that need the head.
        """
        return self

    def fit(self, training: TrainingFeatures) -> dict[str, Tensor]:
        """Compute the :attr:`tensors` from training features.

        Raises:
            InputError: The training images do not suffice.
        """
        return {}

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        """Compute the score [N] of a batch, higher = more in-distribution.

        Args:
            inputs: The classifier's view of the batch.
            fitted: The tensors of :meth:`fit`, by name, on the classifier's device.
        """
        raise NotImplementedError

    def check_fitted(self, fitted: Mapping[str, Tensor]) -> None:
        """Raise an `InputError` unless loaded tensors were fitted with these hyper-parameters."""


def linear_head(classifier: Classifier) -> tuple[Tensor, Tensor]:
    """Return weight [classes, D] and bias [classes] of a classifier known to have a linear head."""
    head = classifier.linear_head()
    assert head is not None, "checked by Baselines"
    return head
