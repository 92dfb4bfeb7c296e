"""TODO."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from ..errors import InputError

PASS_ON = (nn.Identity, nn.Dropout, Permute)
"""Layers that give what they get: no feature maps of their own."""

FIRST_NORMS = ("norm1", "ln_1")
"""What timm and torchvision call the norm before a transformer block's attention."""


def feature_maps(output: Tensor) -> Tensor:
    """Feature maps [N, C, h, w] of a layer's output.

    Maps are square, as the images are. [N, C, h, h] is left as it is, [N, h, h, C] (Swin) is turned; of tokens [N, T, C] (ViT) the
    last h * h are folded, the largest square number up to T: class and register tokens come first.
    """
    if output.ndim == 4:
        return (
            output.permute(0, 3, 1, 2)
            if output.shape[1] == output.shape[2] != output.shape[3]
            else output
        )
    side = math.isqrt(output.shape[1])
    return output[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def has_feature_maps(output: Tensor) -> bool:
    """Whether :func:`feature_maps` has something to work with."""
    return output.ndim == 4 or (output.ndim == 3 and output.shape[1] >= 4)


def _check_layer(name: str, modules: dict[str, nn.Module], outputs: dict[str, Tensor]) -> None:
    if name not in modules:
        near = [known for known in modules if known and known.count(".") <= 1]
        raise InputError(f"classifier: the model has no layer {name!r}; it has: {', '.join(near)}")
    if name not in outputs or not has_feature_maps(outputs[name]):
        what = f"gives {list(outputs[name].shape)}" if name in outputs else "gives no tensor"
        raise InputError(
            f"classifier: layer {name!r} {what}, no feature maps [N, C, h, w] or tokens [N, T, C]; choose another one"
        )


def _heads(modules: dict[str, nn.Module], outputs: dict[str, Tensor], logits: Tensor) -> list[str]:
    """The layer whose output the logits are; failing that, the linear ones of their width (a distilled ViT has two)."""
    same_shape = {
        name: output.flatten(1)
        for name, output in outputs.items()
        if output.numel() == output.shape[1] == logits.numel()
    }
    linear = [name for name in same_shape if isinstance(modules[name], nn.Linear)]
    convolutions = [
        name for name in same_shape if isinstance(modules[name], nn.Conv2d)
    ]  # of 1x1 maps
    exact = [name for name in linear + convolutions if torch.equal(same_shape[name], logits)]
    return exact[-1:] or linear


def _map_layers(modules: dict[str, nn.Module], outputs: dict[str, Tensor]) -> list[str]:
    """The outermost layers with feature maps; where these are tokens, the last norm before attention.

    What comes after that attention reaches the logits through the class token alone: its patch tokens have no gradient.
    """
    outermost = [
        name for name in outputs if not any(parent in outputs for parent in _parents(name))
    ]
    candidates = [
        name
        for name in outermost
        if has_feature_maps(outputs[name]) and not isinstance(modules[name], PASS_ON)
    ]
    layers = [
        name for name in candidates if feature_maps(outputs[name]).shape[-1] > 1
    ] or candidates[:1]
    if not layers or outputs[layers[-1]].ndim == 4:
        return layers
    norms = [
        name
        for name in outputs
        if name.rpartition(".")[2] in FIRST_NORMS and has_feature_maps(outputs[name])
    ]
    return norms[-1:] or layers


def _parents(name: str) -> Iterator[str]:
    """a.b.c -> a, a.b."""
    return (name[:i] for i, character in enumerate(name) if character == ".")
