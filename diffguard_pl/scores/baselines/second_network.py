"""Baselines of a second network's features, such as those of a self-supervised vision transformer.

They know nothing of the classifier but its classes, and are fitted to the same training images.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...classifiers.classifier import Classifier, View
from ...errors import InputError
from .collection import Baselines, find

ALLOWED = {"features", "training features", "labels"}
"""What such a baseline may look at."""


class SecondNetwork(nn.Module):
    """A network beside the classifier whose features are scored.

    The features are the input of the network's linear head, or its output if it has none.

    Args:
        model: Module that maps images to features or logits, or a name of torchvision or timm, such
            as ``timm/vit_small_patch14_dinov2.lvd142m``.
        scores: Baselines of features alone, as :class:`.collection.Baselines` takes them. Defaults
            to ``knn`` and ``mahalanobis``.
        suffix: End of the names of the scores: ``knn_SUFFIX``. Defaults to a short form of the
            model's name.
        checkpoint: See :class:`~diffguard_pl.Classifier`, as for the next five.
        weights: Name of the weights that torchvision or timm downloads, or ``random``.
        input_size: Side of the input images in pixels, to which images are resized.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        crop: Fraction of the image's side that is seen.

    Attributes:
        names: Names of the scores.

    Raises:
        InputError: A score looks at more than features.
    """

    def __init__(
        self,
        model: nn.Module | str,
        scores: Sequence[str] | Mapping[str, Mapping[str, int | float | str] | None] = (
            "knn",
            "mahalanobis",
        ),
        suffix: str | None = None,
        checkpoint: str | None = None,
        weights: str | None = None,
        input_size: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        crop: float | None = None,
    ):
        super().__init__()
        # Before weights are downloaded.
        for name in scores:
            if more := find(name).needs - ALLOWED:
                raise InputError(
                    f"second_network.scores: {name} looks at {', '.join(sorted(more))}, not at "
                    "features alone; leave it out"
                )
        try:
            self.network = Classifier(model, checkpoint, weights, input_size, mean, std, crop)
        except InputError as error:
            # Its settings have the classifier's names.
            raise InputError(re.sub("^classifier", "second_network", str(error))) from error
        self.suffix = suffix or _short_name(model)
        self.as_classifier = AsClassifier(self.network)
        self.baselines = Baselines(scores, cast(Classifier, self.as_classifier))
        self.names = [f"{name}_{self.suffix}" for name in self.baselines.names]

    def use_classes(self, num_classes: int) -> None:
        """Set the number of classes, which is that of the classifier under protection."""
        self.as_classifier.num_classes = num_classes

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the scores [N] by name of images [N, 3, H, W] in [0, 1]."""
        scores = self.baselines(self.as_classifier.view(images), images)
        return {f"{name}_{self.suffix}": values for name, values in scores.items()}

    def networks_to(self, dtype: torch.dtype) -> None:
        """Convert the network's weights to another precision."""
        self.network.networks_to(dtype)

    @property
    def fits(self) -> dict[str, bool]:
        """Whether each score is fitted to training images, by name."""
        return {f"{name}_{self.suffix}": fitted for name, fitted in self.baselines.fits.items()}

    def description(self) -> dict[str, Any]:
        """Return what the scores depend on besides the weights."""
        network = self.network
        return {
            "scores": self.baselines.hyperparameters,
            "input_size": network.input_size,
            "crop": network.crop,
            "interpolation": network.interpolation,
            "normalisation": [network.mean.flatten().tolist(), network.std.flatten().tolist()],
        }


class AsClassifier:
    """The network in place of a classifier, for baselines: its features, and logits of zero.

    Attributes:
        num_classes: Number of classes of the classifier under protection.
    """

    def __init__(self, network: Classifier):
        self.network, self.num_classes = network, 0

    def __getattr__(self, name: str) -> Any:
        if name == "network" or name.startswith("__"):  # while it is copied
            raise AttributeError(name)
        return getattr(self.network, name)

    def linear_head(self) -> None:
        """Return None: the network's own head, if any, is for other classes."""

    @torch.no_grad()
    def view(self, images: Tensor) -> View:
        """Compute the features [N, D] of images [N, 3, H, W] in [0, 1]."""
        view = self.network.view(images)
        features = view.features if self.network.heads else view.logits
        return View(features.new_zeros(len(features), self.num_classes), features, [])


def _short_name(model: nn.Module | str) -> str:
    """Return ``vit_small_patch14_dinov2`` of ``timm/vit_small_patch14_dinov2.lvd142m``."""
    name = model if isinstance(model, str) else type(model).__name__.lower()
    return re.sub(r"\W+", "_", name.rpartition("/")[2].partition(".")[0])
