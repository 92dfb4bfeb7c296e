"""Classifier-free guidance with distinct semantic guidance (paper, section 3.2.2).

Classifier-free guidance by a class-conditional diffusion model (equation 5; equation 6 of Ho &
Salimans 2022, with the scale w counted from the unconditional noise):

    eps_hat(x_t, y) = eps(x_t, null) + w (eps(x_t, y) - eps(x_t, null))

Distinct semantic guidance limits it to the region M that the classifier's decision rests on, where
its Grad-CAM is above a cut (equation 8):

    eps_hat = M eps_hat(x_t, y) + (1 - M) eps(x_t, null)

The original ignores the mask at w = 1, where it takes eps(x_t, y) everywhere. Here the mask holds
at every scale.
"""

import torch
from torch import Tensor

from ..errors import InputError
from .ddim import Level
from .guidance import (
    Guidance,
    GuidanceInputs,
    GuidedNoise,
    GuidingClassifier,
    Network,
    changed,
    checked_interval,
    clip_where,
)


class ClassifierFreeGuidance(Guidance):
    """Classifier-free guidance with optional distinct semantic guidance (paper, section 3.2.2).

    Args:
        scale: Guidance scale w.
        cam_cut: Threshold of distinct semantic guidance, a fraction of each image's highest
            Grad-CAM activation: guide only where the activation is above it or, if negative, where
            it is below its absolute value. None: guide everywhere, which is also what the original
            does at scale 1, whatever the cut.
        inversion_label: Whether inversion is conditional on the label. Defaults to False: under "no
            class".
        inversion_scale: Guidance scale of a conditional inversion.
        interval: Fractions of the training schedule, 0 (clean) to 1 (noise), between which
            denoising is guided; a step elsewhere takes one network evaluation in place of two
            (Kynkaanniemi et al. 2024).
    """

    needs_null_label = True
    nfe_per_step = 2

    def __init__(
        self,
        scale: float = 10.0,
        cam_cut: float | None = None,
        inversion_label: bool = False,
        inversion_scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        if cam_cut is not None and not -1 <= cam_cut <= 1:
            raise InputError(
                f"guidance.cam_cut={cam_cut}: must be a fraction of the highest activation; "
                "set -1 to 1, or null"
            )
        self.scale, self.cam_cut = scale, cam_cut
        self.interval = checked_interval(interval)
        self.inversion_scale = inversion_scale if inversion_label else 0.0

    def ablations(self) -> dict[str, Guidance]:
        return {} if self.cam_cut is None else {"no mask": changed(self, cam_cut=None)}

    def needs_single_call(self, scale: Tensor, masked: bool) -> Tensor:
        # w = 1 leaves eps(x_t, y) alone; a mask needs both.
        return (scale == 1) & (not masked)

    def predict_eps(
        self,
        network: Network,
        x: Tensor,
        t: Tensor,
        level: Level,
        inputs: GuidanceInputs,
        classifier: GuidingClassifier,
    ) -> GuidedNoise:
        n, g = len(t), len(inputs.labels)

        # One network call on n rows, and on the g guided ones once more under their label.
        x_in = torch.cat([x[:n], x[:g]])
        labels = torch.cat([inputs.network_labels, inputs.labels])
        eps, eps_label = network(x_in, torch.cat([t, t[:g]]), labels).split([n, g])

        # eps(x_t, null) + w (eps(x_t, y) - eps(x_t, null))
        unguided, pull = eps[:g], eps_label - eps[:g]
        guided = unguided + inputs.scale * pull

        # Distinct semantic guidance: outside M, the unconditional noise.
        if inputs.mask is not None:
            guided = torch.where(inputs.mask, guided, unguided)

        # Guided rows, others, unguided copies.
        eps = torch.cat([guided, eps[g:], eps[: inputs.unguided_copies]])
        return GuidedNoise(clip_where(inputs.clip, x, eps, level), unguided, pull)
