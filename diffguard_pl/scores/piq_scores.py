"""Image distances of piq as scores, higher = more alike. piq is imported when one is built."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..dtypes import at_least_float32
from ..errors import InputError

PIQ = {
    "dists": ("DISTS", 1.0),
    "lpips": ("LPIPS", 0.0),
    "ssim": ("SSIMLoss", 1.0),
    "fsim": ("FSIMLoss", 1.0),
    "vif": ("VIFLoss", 1.0),
    "mdsi": ("MDSILoss", 0.0),
    "gmsd": ("GMSDLoss", 0.0),
}
"""Name -> piq's loss, and the offset of the score, offset - loss."""


class PiqScore(nn.Module):
    """A piq loss as a score: ``offset - loss(a, b)`` [N].

    Args:
        name: Name of :data:`PIQ`.
    """

    def __init__(self, name: str):
        super().__init__()
        import piq

        loss, self.offset = PIQ[name]
        self.loss: Any
        self.name = name
        with _downloaded_weights(name):
            self.loss = getattr(piq, loss)(reduction="none").requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare images [N, 3, H, W] in [0, 1], pair by pair: [N].

        Raises:
            InputError: The loss does not support images of this size.
        """
        dtype = torch.float64 if a.dtype == b.dtype == torch.float64 else torch.float32
        try:
            distance = self.loss(a.to(dtype), b.to(dtype))
        except (ValueError, AssertionError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = " ".join(str(error).split())
            raise InputError(
                f"discrepancies: {self.name} does not support {a.shape[-1]} px images ({reason}); "
                "choose another one"
            ) from error
        return self.offset - distance.reshape(len(a))


class FeatureScore(PiqScore):
    """DISTS or LPIPS in two parts: features of an image compared many times are computed once."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Compute the features [N, C, h, w] of images [N, 3, H, W] in [0, 1], at every layer."""
        images = at_least_float32(images)
        self.loss.model.to(images)
        shorter = min(images.shape[-2:])
        if self.name == "dists" and shorter > 256:
            images = interpolate(
                images, scale_factor=256 / shorter, mode="bilinear", recompute_scale_factor=False
            )
        with torch.autocast(images.device.type, enabled=False):
            return self.loss.get_features(images)

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Compute piq's loss [N] of features."""
        parts = []
        distances = self.loss.compute_distance(a, b)
        for distance, weight in zip(distances, self.loss.weights, strict=True):
            parts.append((distance * weight.to(distance)).mean(dim=(2, 3)))
        loss = torch.cat(parts, dim=1).sum(dim=1)
        return 1 - loss if self.name == "dists" else loss


@contextmanager
def _downloaded_weights(name: str) -> Iterator[None]:
    """Let DISTS and LPIPS download their weights, as tensors only; without a network, say how."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with warnings.catch_warnings():
            # piq calls torchvision's deprecated interface.
            warnings.filterwarnings("ignore", ".*'pretrained'.*|.*weight enum.*")
            yield
    except OSError as error:
        files = f"vgg16-397923af.pth and {name}_weights.pt"
        raise InputError(
            f"discrepancies: {name}: cannot download its weights ({error}); put {files} into "
            f"{torch.hub.get_dir()}/checkpoints, or choose other discrepancies"
        ) from error
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
