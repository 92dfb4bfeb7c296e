"""Image distances of piq as scores, higher = more alike. piq is imported when one is built."""

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..checkpoints.tensors import tensors_only
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
        vgg16: Network of DISTS and LPIPS. Defaults to one of its own.
    """

    def __init__(self, name: str, vgg16: "SharedVGG16 | None" = None):
        super().__init__()
        self.name, self.offset = name, PIQ[name][1]
        self.loss: Any = _build_loss(name, vgg16 or SharedVGG16()).requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare images [N, 3, H, W] in [0, 1], pair by pair: [N]; NaN where an image has NaN.

        Raises:
            InputError: The loss does not support images of this size.
        """
        # piq would refuse the whole batch
        undefined = (a.isnan() | b.isnan()).flatten(1).any(dim=1)
        a, b = (images.masked_fill(undefined.view(-1, 1, 1, 1), 0.0) for images in (a, b))
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
        return (self.offset - distance.reshape(len(a))).masked_fill(undefined, float("nan"))


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


# ---- the weights of DISTS and LPIPS


class SharedVGG16:
    """Convolutions of a VGG-16 that DISTS and LPIPS share: in memory once, loaded when first used.

    piq would build a whole VGG-16 for each of them, of 138 million random numbers.
    """

    def __init__(self) -> None:
        self._layers: nn.Sequential | None = None

    def layers(self) -> nn.Sequential:
        """Return a sequence of the layers; DISTS replaces the pooling layers of its own one."""
        if self._layers is None:
            self._layers = _load_vgg16()
        return nn.Sequential(OrderedDict(self._layers.named_children()))


def _load_vgg16() -> nn.Sequential:
    """Load the convolutions of torchvision's VGG-16; none of their weights is initialised."""
    from torchvision.models import VGG16_Weights, vgg16

    with torch.device("meta"):
        layers = vgg16(init_weights=False).features
    weights = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    state = {}
    for key in layers.state_dict():
        state[key] = weights[f"features.{key}"]
    layers.load_state_dict(state, assign=True)
    return layers.requires_grad_(False).eval()


def _build_loss(name: str, vgg16: SharedVGG16) -> nn.Module:
    """Build a loss of piq; DISTS and LPIPS with the shared VGG-16 and downloaded weights."""
    import piq
    from piq import perceptual

    kind = getattr(piq, PIQ[name][0])
    if not issubclass(kind, perceptual.ContentLoss):
        return kind(reduction="none")
    try:
        # the lock of tensors_only lets one thread at a time in
        with tensors_only(), _replaced_vgg16(perceptual, vgg16):
            return kind(reduction="none")
    except OSError as error:
        raise _weights_error(name, f"cannot download its weights ({error})", "put") from error
    except (
        AssertionError,
        EOFError,
        KeyError,
        RuntimeError,
        TypeError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise _weights_error(name, f"damaged weights ({reason})", "put undamaged") from error


@contextmanager
def _replaced_vgg16(perceptual: Any, vgg16: SharedVGG16) -> Iterator[None]:
    """Let piq take the shared network where it would build one."""
    original = perceptual.vgg16
    perceptual.vgg16 = lambda **_: SimpleNamespace(features=vgg16.layers())
    try:
        yield
    finally:
        perceptual.vgg16 = original


def _weights_error(name: str, problem: str, put: str) -> InputError:
    return InputError(
        f"discrepancies: {name}: {problem}; {put} vgg16-397923af.pth and {name}_weights.pt into "
        f"{torch.hub.get_dir()}/checkpoints, or choose other discrepancies"
    )
