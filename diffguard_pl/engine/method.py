"""Interface between DiffGuard and the loops that run it: :class:`.Stream` and :mod:`.reference`."""

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import Tensor

from ..diffusion.path import Path
from ..diffusion.sampling import GuidedSampler, SamplingSettings
from ..stages import Detection, Prediction, Reconstruction


class Method(Protocol):
    """The stages of DiffGuard, which :class:`~diffguard_pl.DiffGuard` implements."""

    sampling: SamplingSettings
    slots: int

    @property
    def score_names(self) -> list[str]:
        """Names of all scores."""

    @property
    def own_nfe(self) -> int:
        """Network evaluations of each image that path scores make on their own."""

    @property
    def compares_input_maps(self) -> bool:
        """Whether the comparison uses feature maps of the input images."""

    def sampler(self) -> GuidedSampler:
        """Return the diffusion model with its guidance and settings."""

    def classify(self, images: Tensor, labels: Tensor | None = None) -> Prediction:
        """Run stage 1 on images [N, 3, H, W] in [0, 1]."""

    def measure(
        self,
        images: Tensor,
        x: Tensor,
        labels: Tensor,
        names: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Run the path scores that have network evaluations of their own."""

    def encode(self, images: Tensor) -> Tensor:
        """Return what is diffused of images in [0, 1], [N, C, h, w]."""

    def decode(self, x: Tensor) -> Reconstruction:
        """Return the images of x [N, C, h, w], or [2N, C, h, w] with the unguided ones behind."""

    def has_counterpart(self, prediction: Prediction) -> Tensor | None:
        """Return which labels exist in the diffusion model, bool [N]. None: all."""

    def latent_mask(self, prediction: Prediction, x: Tensor) -> Tensor | None:
        """Return where denoising of x is guided, bool [N, 1, h, w]. None: everywhere."""

    def compare(
        self,
        images: Tensor,
        prediction: Prediction,
        reconstruction: Reconstruction,
        latents: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run stage 4: return the discrepancies."""

    def detection(
        self,
        images: Tensor,
        prediction: Prediction,
        stop_index: Tensor,
        reconstruction: Reconstruction | None = None,
        path: Path | None = None,
        measured: Mapping[str, Tensor] | None = None,
    ) -> Detection:
        """Run stage 4 and return all results."""
