"""ODIN: softmax at a temperature, of perturbed images."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..hyperparameters import parameter, positive
from .base import Baseline, Inputs


@dataclass(frozen=True)
class ODIN(Baseline):
    """Maximum softmax probability max_k softmax(z(x') / T)_k (Liang et al., ICLR 2018, eq. 1-2).

    x' = x - noise sign(gradient of the cross-entropy of the predicted class), in pixels in [0, 1].
    OpenOOD moves normalised images by noise / std, which is the same, and does not clamp them. As
    there, pixels without a gradient move down.

    Args:
        temperature: T, above 0. Defaults to 1000.
        noise: Step of a pixel in [0, 1], 0 or more. Defaults to 0.0014.
    """

    name = "odin"
    needs = frozenset({"gradients"})
    temperature: float = positive(1000.0)
    noise: float = parameter(0.0014, lambda value: value >= 0, "0 or more, of pixels in [0, 1]")

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        classifier, T = inputs.classifier, self.temperature

        # Gradient of the loss with respect to the image that the classifier sees.
        with torch.inference_mode(False), torch.enable_grad():
            images = (
                classifier.resize_and_crop(inputs.images.detach().clone()).detach().requires_grad_()
            )
            logits = classifier.logits(images).float()
            loss = cross_entropy(logits / T, logits.argmax(dim=1), reduction="sum")
            # Only the sign matters, and times T gradients do not vanish in float16.
            (gradient,) = torch.autograd.grad(T * loss, images)

        # Equation 2: a step that makes the classifier more certain.
        with torch.no_grad():
            moved = images.detach() - self.noise * torch.where(gradient >= 0, 1.0, -1.0)
            return (classifier.logits(moved).float() / T).softmax(dim=1).amax(dim=1)
