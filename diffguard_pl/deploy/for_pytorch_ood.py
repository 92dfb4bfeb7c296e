"""DiffGuard as a detector of pytorch-ood (Kirchheim et al. 2022), for its metrics, its benchmarks, and code that is written for it.

detector = DiffGuardDetector("detector.json")      # or of a Detector that has no threshold yet: .fit(validation_loader)
metrics = OODMetrics()
for images, labels in loader:                      # in [0, 1]; labels below 0 are out-of-distribution
    metrics.update(detector(images), labels)
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_ood import api
from torch import Tensor

from .detector import Detector
from .for_openood import pictures


class DiffGuardDetector(api.Detector):
    """A detector behind the methods of pytorch-ood's. Scores are outlier scores, higher = more out-of-distribution, on the CPU.

    The features of an image are its scores, see :meth:`Detector.features <diffguard_pl.Detector.features>`.

    Args:
        detector: or the file of one.
        mean: of each channel, that the loader's transform subtracts from images in [0, 1]; none: it does not normalise.
        std: of each channel, that it divides by.
    """

    requires_fit = True
    info = api.DetectorInfo(
        tasks=frozenset({api.Task.CLASSIFICATION}),
        paper=api.Paper(
            title="DiffGuard: Semantic Mismatch-Guided Out-of-Distribution Detection using Pre-trained Diffusion Models",
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
        return self.detector.device

    def to(self, device: str | torch.device) -> "DiffGuardDetector":
        self.detector.to(device)
        return self

    def fit(self, data_loader: Iterable[Any]) -> "DiffGuardDetector":
        """Set the threshold, and how scores are combined if they are.

        Args:
            data_loader: of (images [N, 3, H, W], labels [N]): in-distribution ones that the classifier was not trained on; those
                with labels below 0 are passed over, as all detectors of pytorch-ood do.
        """
        self.detector.calibrate(
            pictures(x[y >= 0], self.detector, self.mean, self.std)
            for x, y in data_loader
            if (y >= 0).any()
        )
        return self

    def fit_features(self, x: Tensor, y: Tensor | None = None) -> "DiffGuardDetector":
        """As :meth:`fit`, of features [N, K] and, where some are to be passed over, labels [N]."""
        self.detector.calibrate_features(x if y is None else x[y >= 0])
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Outlier scores [N] of images [N, 3, H, W]."""
        self._check_fitted()
        return self.detector(pictures(x, self.detector, self.mean, self.std))

    def predict_features(self, x: Tensor) -> Tensor:
        """Outlier scores [N] of features [N, K]."""
        self._check_fitted()
        return self.detector.predict_features(x).outlier_scores

    def _check_fitted(self) -> None:
        if self.detector.calibrated is None:
            raise api.RequiresFittingException
