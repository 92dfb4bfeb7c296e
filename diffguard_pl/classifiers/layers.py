"""Layers of a classifier: its head, the layer for Grad-CAM, and those with feature maps.

All are found from the outputs of one forward pass, so that any torchvision or timm model works
without a table of architectures.
"""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops.misc import Permute

from ..errors import InputError

IDENTITY_LAYERS = (nn.Identity, nn.Dropout, Permute)
"""Layers whose output holds no other features than their input."""
PRE_ATTENTION_NORMS = ("norm1", "ln_1")
"""Name of the norm before a transformer block's attention, in timm and in torchvision."""


# ---- feature maps


def feature_maps(output: Tensor) -> Tensor:
    """Convert a layer's output to feature maps [N, C, h, w].

    Feature maps are square, as the classifier's images are.

    Args:
        output: Feature maps [N, C, h, h], returned unchanged; channels-last ones [N, h, h, C]
            (Swin), permuted; or tokens [N, T, C] (ViT). Of tokens the last h * h are folded, the
            largest square number up to T, because class and register tokens come first.
    """
    if output.ndim == 4:
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.permute(0, 3, 1, 2) if channels_last else output
    side = math.isqrt(output.shape[1])
    return output[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def has_feature_maps(output: Tensor) -> bool:
    """Return whether :func:`feature_maps` can convert a layer's output (2 x 2 tokens at least)."""
    return output.ndim == 4 or (output.ndim == 3 and output.shape[1] >= 4)


# ---- choice of the layers


@dataclass(frozen=True)
class ChosenLayers:
    """The layers of a classifier that features and feature maps are taken from.

    Args:
        num_classes: Number of logits.
        heads: Names of the linear layers that give the logits; two in a distilled ViT, whose logits
            are the mean of both; empty if no layer does.
        cam_layer: Name of the layer for Grad-CAM; None if no layer has feature maps.
        map_layers: Names of the layers whose feature maps the discrepancy ``maps`` compares.
    """

    num_classes: int
    heads: list[str]
    cam_layer: str | None
    map_layers: list[str]


def choose_layers(
    model: nn.Module,
    forward: Callable[[], object],
    cam_layer: str | None = None,
    map_layers: list[str] | None = None,
) -> ChosenLayers:
    """Choose the layers of a model by the outputs of one forward pass.

    Args:
        model: Model from images to logits.
        forward: Function that runs the model on one image and returns its output.
        cam_layer: Name of the layer for Grad-CAM. Defaults to the last of the map layers found.
        map_layers: Names of the map layers. Defaults to those found.

    Raises:
        InputError: The model does not return logits, or a named layer has no feature maps.
    """
    modules = dict(model.named_modules())
    outputs, logits = _record_outputs(modules, forward)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise InputError("classifier: the model must return logits [N, classes]")
    if cam_layer:
        _check_feature_maps(cam_layer, modules, outputs)
    for name in map_layers or []:
        _check_feature_maps(name, modules, outputs)

    heads = _find_heads(modules, outputs, logits)
    found = _find_map_layers(modules, outputs)
    if not cam_layer and found:
        cam_layer = found[-1]
    if not heads and cam_layer is None:
        raise InputError(
            "classifier: neither a linear layer nor feature maps found to take features from; set "
            "classifier.cam_layer"
        )
    return ChosenLayers(logits.shape[1], heads, cam_layer, map_layers or found)


def _record_outputs(
    modules: dict[str, nn.Module], forward: Callable[[], object]
) -> tuple[dict[str, Tensor], object]:
    """Run a model and record what its layers return.

    Returns:
        The layers' outputs by name, in the order in which they finish, and the model's output.
        Only vectors keep their values; all other outputs are kept as shapes, on the meta device.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple, output: object) -> None:
            # a layer that runs several times counts at its last run
            outputs.pop(name, None)
            if isinstance(output, Tensor) and output.ndim > 1:
                is_vector = output.numel() == output.shape[1]
                outputs[name] = output if is_vector else output.to("meta")

        return hook

    layers = {name: module for name, module in modules.items() if name}
    hooks = [module.register_forward_hook(record(name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            return outputs, forward()
    finally:
        for hook in hooks:
            hook.remove()


def _check_feature_maps(
    name: str, modules: dict[str, nn.Module], outputs: dict[str, Tensor]
) -> None:
    """Raise an InputError unless a layer exists and returns feature maps."""
    if name not in modules:
        outer = [known for known in modules if known and known.count(".") <= 1]
        raise InputError(f"classifier: unknown layer {name!r}; choose from: {', '.join(outer)}")
    if name not in outputs or not has_feature_maps(outputs[name]):
        returned = list(outputs[name].shape) if name in outputs else "no tensor"
        raise InputError(
            f"classifier: layer {name!r} returns {returned}, must return feature maps "
            "[N, C, h, w] or tokens [N, T, C]; choose another layer"
        )


def _find_heads(
    modules: dict[str, nn.Module], outputs: dict[str, Tensor], logits: Tensor
) -> list[str]:
    """Return the name of the layer that gives the logits.

    If no layer's output equals them, return all linear layers of their width: a distilled ViT has
    two heads, and its logits are their mean.
    """
    linear, convolutions, equal = [], [], set()
    for name, output in outputs.items():
        if not output.numel() == output.shape[1] == logits.numel():
            continue
        if isinstance(modules[name], nn.Linear):
            linear.append(name)
        # a convolution of 1x1 feature maps
        elif isinstance(modules[name], nn.Conv2d):
            convolutions.append(name)
        if torch.equal(output.flatten(1), logits):
            equal.add(name)
    exact = [name for name in linear + convolutions if name in equal]
    return exact[-1:] or linear


def _find_map_layers(modules: dict[str, nn.Module], outputs: dict[str, Tensor]) -> list[str]:
    """Return the names of the outermost layers with feature maps.

    In a vision transformer return the norm before the last attention instead: what comes after that
    attention reaches the logits through the class token alone, so patch tokens have no gradient.
    """
    candidates = []
    for name, output in outputs.items():
        is_inside = any(parent in outputs for parent in _parents(name))
        is_identity = isinstance(modules[name], IDENTITY_LAYERS)
        if has_feature_maps(output) and not is_inside and not is_identity:
            candidates.append(name)

    # maps of 1x1 have no spatial extent; one of them is better than none
    layers = [name for name in candidates if feature_maps(outputs[name]).shape[-1] > 1]
    layers = layers or candidates[:1]
    if not layers or outputs[layers[-1]].ndim == 4:
        return layers

    norms = []
    for name, output in outputs.items():
        if name.rpartition(".")[2] in PRE_ATTENTION_NORMS and has_feature_maps(output):
            norms.append(name)
    return norms[-1:] or layers


def _parents(name: str) -> Iterator[str]:
    """Yield the names of the modules that contain a module: of a.b.c these are a and a.b."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        yield ".".join(parts[:depth])


# ---- what the layers compute in a forward pass


class Captured(NamedTuple):
    """Tensors of one forward pass.

    Attributes:
        outputs: Outputs of layers by name.
        inputs: Inputs of layers by name.
    """

    outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]


@contextmanager
def capture(
    model: nn.Module,
    outputs_of: Collection[str],
    inputs_of: Collection[str],
    differentiate_from: Collection[str] = (),
) -> Iterator[Captured]:
    """Capture tensors of the forward pass that runs inside.

    Args:
        model: Model that runs inside.
        outputs_of: Names of the layers whose output is captured.
        inputs_of: Names of the layers whose input is captured.
        differentiate_from: Names of the layers whose outputs become leaves of the autograd graph,
            so that only what comes after them is differentiated. Defaults to none.
    """
    captured = Captured({}, {})

    def keep_output(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
            if name in differentiate_from:
                output = output.detach().requires_grad_()
            captured.outputs[name] = output
            # the next layer gets a copy, as it may work in place
            return output.clone()

        return hook

    def keep_input(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            captured.inputs[name] = args[0]

        return hook

    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(keep_output(name)) for name in set(outputs_of)]
    hooks += [modules[name].register_forward_pre_hook(keep_input(name)) for name in inputs_of]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()
