"""Classifiers by name, torchvision's and timm's, each with the preprocessing that its weights were trained for."""

import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models

from ..checkpoints.registry import resolve
from ..checkpoints.tensors import load_tensors, tensors_only
from ..errors import InputError, choose

INTERPOLATIONS = ["bilinear", "bicubic"]
RANDOM = "random"
PREFIXES = ("module.", "model.", "net.")
"""What DataParallel, Lightning and training scripts put before every key of a checkpoint."""
UNREADABLE = (OSError, RuntimeError, EOFError, pickle.UnpicklingError)


class Preprocessing(NamedTuple):
    """How a picture becomes what a classifier was trained on. A module may bring its own, as its attribute ``preprocessing``.

    Attributes:
        input_size: side of the images that it takes, in pixels.
        crop: share of the picture's side that it sees, centred.
        mean: of each channel, subtracted from images in [0, 1].
        std: of each channel, divided by.
        interpolation: bilinear or bicubic, where the picture has another size.
    """

    input_size: int = 224
    crop: float = 1.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"


class Entry(NamedTuple):
    """A classifier of the zoo.

    Attributes:
        model: images to logits.
        preprocessing: its own.
        class_names: of each logit; None where nobody knows.
    """

    model: nn.Module
    preprocessing: Preprocessing
    class_names: list[str] | None


def find(model: nn.Module | str, weights: str | None = None, load: bool = True) -> Entry:
    """A classifier by name; of a module what it says itself.

    Args:
        model: a module, torchvision's name, or ``timm/`` and timm's.
        weights: of a model by name: which of those that there are, None for the default ones, or ``random``.
        load: the weights; otherwise they only decide the preprocessing, and nothing is downloaded.

    Raises:
        InputError: no such model or weights, timm is not installed, or the download failed.
    """
    if isinstance(model, nn.Module):
        if weights:
            raise InputError(
                f"classifier: weights: {weights} is for a model by name, not for a {type(model).__name__}; remove it"
            )
        own = getattr(model, "preprocessing", None)
        return Entry(model, own if isinstance(own, Preprocessing) else Preprocessing(), None)
    if weights == RANDOM and not load:
        raise InputError(
            "classifier: weights: random and a checkpoint exclude each other; set classifier.checkpoint to null"
        )
    if model.startswith("timm/"):
        return _timm(model.removeprefix("timm/"), weights, load)
    return _torchvision(model, weights, load)


def load_weights(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint: torchvision's, timm's or OpenOOD's layout, as it is, in a ``state_dict``, or with a prefix to every key.

    Raises:
        InputError: no such file, or it does not fit; names the first key that does not.
    """
    path = resolve(checkpoint)
    state = load_tensors(path / "model.safetensors" if path.is_dir() else path)
    expected = model.state_dict().keys()
    while expected.isdisjoint(state) and (prefix := _common_prefix(state)):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    misfit = _load_or_misfit(model, state)
    if misfit:
        raise InputError(
            f"classifier checkpoint {path} does not fit {type(model).__name__}: {misfit}; look at classifier.model"
        )


def _common_prefix(state: dict[str, Tensor]) -> str | None:
    return next(
        (prefix for prefix in PREFIXES if state and all(key.startswith(prefix) for key in state)),
        None,
    )


def _load_or_misfit(model: nn.Module, state: dict[str, Tensor]) -> str | None:
    """Load, or say what is wrong with the first key that does not fit."""
    try:
        missing, extra = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        shapes = re.search(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", str(error))
        if shapes is None:
            raise
        return f"{shapes[1]} has another shape, {shapes[2]} and not {shapes[3]}"
    return (
        f"{missing[0]} is missing"
        if missing
        else f"{extra[0]} is not in the model"
        if extra
        else None
    )


def _torchvision(name: str, weights: str | None, load: bool) -> Entry:
    names = models.list_models(module=models)
    if name not in names:
        raise InputError(
            f"classifier: torchvision has no model {name!r}; {_near(name, names)}; timm's are called timm/..."
        )
    # some weights are for detection heads and know no classes
    known = {
        key: member
        for key, member in models.get_model_weights(name).__members__.items()
        if member.meta["categories"]
    }
    if weights not in (None, RANDOM):
        choose(f"weights of {name}", str(weights), list(known))
    member = known[weights if weights in known else "DEFAULT"]
    if weights == RANDOM:
        model = _random(lambda: models.get_model(name, weights=None, **_settings(name, member)))
    elif not load:
        model = models.get_model(name, weights=None, **_settings(name, member))
    else:
        remedy = f"put {member.url} into {torch.hub.get_dir()}/checkpoints"
        model = _downloaded(name, lambda: models.get_model(name, weights=member), remedy)
    transform = member.transforms()
    own = Preprocessing(
        transform.crop_size[0],
        transform.crop_size[0] / transform.resize_size[0],
        tuple(transform.mean),
        tuple(transform.std),
        transform.interpolation.value,
    )
    return Entry(model, own, list(member.meta["categories"]))


def _settings(name: str, member: Enum) -> dict[str, Any]:
    """What torchvision's builders change in a model for its weights, besides loading them."""
    if name.startswith("vit_"):
        return {"image_size": member.meta["min_size"][0]}  # type: ignore[attr-defined]
    return (
        {"transform_input": True, "init_weights": False}
        if name in ("googlenet", "inception_v3")
        else {}
    )


def _timm(name: str, weights: str | None, load: bool) -> Entry:
    try:
        import timm
        from timm.data import ImageNetInfo, resolve_model_data_config
    except ImportError as error:
        raise InputError(
            f"classifier: timm/{name} needs timm: pip install 'diffguard-pl[timm]'"
        ) from error
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise InputError(
            f"classifier: timm has no model {architecture!r}; {_near(architecture, timm.list_models())}"
        )
    tag = weights if weights not in (None, RANDOM) else tag
    if tag:
        tags = [
            known.partition(".")[2]
            for known in timm.list_models(f"{architecture}.*", pretrained=True)
        ]
        choose(f"weights of timm/{architecture}", tag, tags)
        architecture = f"{architecture}.{tag}"
    source = timm.get_pretrained_cfg(architecture)
    if source and source.num_classes == 0:
        raise InputError(
            f"classifier: timm/{architecture} gives features, no logits; choose one that was trained to classify"
        )
    if weights == RANDOM:
        model = _random(lambda: timm.create_model(architecture))
    elif not load:
        model = timm.create_model(architecture)
    elif not (source and source.has_weights):
        raise InputError(
            f"classifier: timm has no weights for {architecture}; set classifier.checkpoint"
        )
    else:
        file = (
            f"model.safetensors of https://huggingface.co/{source.hf_hub_id}"
            if source.hf_hub_id
            else source.url
        )
        remedy = f"fetch {file} and set classifier.checkpoint to it"
        model = _downloaded(
            f"timm/{architecture}", lambda: timm.create_model(architecture, pretrained=True), remedy
        )
    config = resolve_model_data_config(model)
    size = config["input_size"][-1]
    own = Preprocessing(
        size,
        size / math.floor(size / config["crop_pct"]),  # timm rounds down
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"] if config["interpolation"] in INTERPOLATIONS else "bicubic",
    )
    names = ImageNetInfo().label_descriptions() if model.num_classes == 1000 else None
    return Entry(model, own, [name.partition(",")[0] for name in names] if names else None)


def _random(build: Callable[[], nn.Module]) -> nn.Module:
    """The same weights every time; the global random numbers are left alone."""
    warnings.warn("classifier: random weights, for a dry run; scores mean nothing", stacklevel=5)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(100)  # torch.manual_seed would seed CUDA, too
        model = build()
        for layer in model.modules():
            # some heads (torchvision's ViT, BiT) start from zero: there would be nothing to see in a dry run
            if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.02)
    return model


def _downloaded(name: str, build: Callable[[], nn.Module], remedy: str) -> nn.Module:
    try:
        with tensors_only():
            return build()
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"classifier: the weights of {name} could not be downloaded or read ({reason}); {remedy}"
        ) from error


def _near(name: str, names: Iterable[str]) -> str:
    return f"near it: {', '.join(get_close_matches(name, names, n=6, cutoff=0.4)) or 'nothing'}"
