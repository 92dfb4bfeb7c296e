"""DiffGuard as a detector of pytorch-ood (Kirchheim et al. 2022).

detector = DiffGuardDetector("detector.json")  # or DiffGuardDetector(Detector(model)).fit(loader)
metrics = OODMetrics()
for images, labels in loader:  # images in [0, 1]; labels below 0 mark out-of-distribution images
    metrics.update(detector(images), labels)
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_ood import api
from torch import Tensor

from .detector import Detector
from .foreign_images import images_for


class DiffGuardDetector(api.Detector):
    """A detector with the methods of pytorch-ood's.

    Scores are outlier scores, higher = more out-of-distribution, on the CPU. The features of an
    image are its scores, see :meth:`Detector.features <diffguard_pl.Detector.features>`.

    Args:
        detector: Detector, or path of a detector file.
        mean: Mean per channel that the loader's transform subtracts. Defaults to None: images are
            in [0, 1].
        std: Standard deviation per channel that it divides by. Defaults to None.
    """

    requires_fit = True
    info = api.DetectorInfo(
        tasks=frozenset({api.Task.CLASSIFICATION}),
        paper=api.Paper(
            title=(
                "DiffGuard: Semantic Mismatch-Guided Out-of-Distribution Detection using "
                "Pre-trained Diffusion Models"
            ),
            venue="ICCV",
            year=2023,
            url="https://arxiv.org/abs/2308.07687",
        ),
    )

    def __init__(
        self,
        detector: Detector | str | Path,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        self.detector = detector if isinstance(detector, Detector) else Detector.load(detector)
        self.mean, self.std = mean, std

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.detector.device

    def to(self, device: str | torch.device) -> "DiffGuardDetector":
        """Move the networks to a device."""
        self.detector.to(device)
        return self

    def fit(self, data_loader: Iterable[Any]) -> "DiffGuardDetector":
        """Calibrate the threshold and any combination of scores.

        Args:
            data_loader: Pairs of images [N, 3, H, W] and labels [N]. Images must not be training
                images of the classifier. As in pytorch-ood's detectors, images with labels below 0
                are ignored.
        """
        batches = (self._images(x[y >= 0]) for x, y in data_loader if (y >= 0).any())
        self.detector.calibrate(batches)
        return self

    def fit_features(self, x: Tensor, y: Tensor | None = None) -> "DiffGuardDetector":
        """Calibrate as :meth:`fit` does, on features.

        Args:
            x: Features [N, K].
            y: Labels [N]; features with labels below 0 are ignored. Defaults to None.
        """
        self.detector.calibrate_features(x if y is None else x[y >= 0])
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Return outlier scores [N] of images [N, 3, H, W]."""
        self._check_calibrated()
        return self.detector(self._images(x))

    def predict_features(self, x: Tensor) -> Tensor:
        """Return outlier scores [N] of features [N, K]."""
        self._check_calibrated()
        return self.detector.predict_features(x).outlier_scores

    def _images(self, x: Tensor) -> Tensor:
        return images_for(self.detector, x, self.mean, self.std)

    def _check_calibrated(self) -> None:
        if self.detector.calibrated is None:
            raise api.RequiresFittingException
