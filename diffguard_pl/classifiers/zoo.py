"""Classifiers of torchvision and timm by name, with the preprocessing that their weights need."""

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
from ..checkpoints.tensors import load_tensors, tensors_only, weight_problem
from ..errors import InputError, choose

INTERPOLATIONS = ["bilinear", "bicubic"]
RANDOM = "random"
"""Value of ``weights`` that stands for random weights."""
KEY_PREFIXES = ("module.", "model.", "net.")
"""Prefixes that DataParallel, Lightning and training scripts add to every key of a checkpoint."""
LOADING_ERRORS = (OSError, RuntimeError, EOFError, pickle.UnpicklingError)
"""Errors of a failed download and of a damaged or unsafe file."""


class Preprocessing(NamedTuple):
    """Preprocessing of a classifier. A module may have one as its attribute ``preprocessing``.

    Attributes:
        input_size: Side of the input images in pixels.
        crop: Fraction of the image's side that is classified, at the centre.
        mean: Mean of each channel, subtracted from images in [0, 1].
        std: Standard deviation of each channel, which centred images are divided by.
        interpolation: Interpolation of the resizing, ``bilinear`` or ``bicubic``.
    """

    input_size: int = 224
    crop: float = 1.0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"


class LoadedModel(NamedTuple):
    """A model with what is known about it.

    Attributes:
        model: Module that maps images to logits.
        preprocessing: Preprocessing of its weights.
        class_names: English name of each class; None if unknown.
    """

    model: nn.Module
    preprocessing: Preprocessing
    class_names: list[str] | None


def load_model(
    model: nn.Module | str, weights: str | None = None, download: bool = True
) -> LoadedModel:
    """Load a model by name, or wrap a module with its own preprocessing.

    Args:
        model: A module, a name of torchvision, or ``timm/`` and a name of timm.
        weights: For a model by name: name of its weights, or ``random``. Defaults to the library's
            default weights.
        download: Whether to download the weights; otherwise they only decide the preprocessing.
            Defaults to True.

    Raises:
        InputError: The model or its weights are unknown, timm is not installed, or the download
            failed.
    """
    if isinstance(model, nn.Module):
        if weights:
            raise InputError(
                f"classifier.weights: {weights} needs a model by name, not a "
                f"{type(model).__name__}; set classifier.weights to null"
            )
        preprocessing = getattr(model, "preprocessing", None)
        if not isinstance(preprocessing, Preprocessing):
            preprocessing = Preprocessing()
        return LoadedModel(model, preprocessing, class_names=None)
    if weights == RANDOM and not download:
        raise InputError(
            "classifier.weights: random and a checkpoint exclude each other; set "
            "classifier.checkpoint to null"
        )
    if model.startswith("timm/"):
        return _load_timm(model.removeprefix("timm/"), weights, download)
    return _load_torchvision(model, weights, download)


# ---- torchvision


def _load_torchvision(name: str, weights: str | None, download: bool) -> LoadedModel:
    """Build a model of torchvision, with the weights of its setting."""
    names = models.list_models(module=models)
    if name not in names:
        raise InputError(
            f"classifier.model: torchvision has no {name!r}; {_similar(name, names)}; names of "
            "timm start with timm/"
        )
    # weights without categories are for detection heads
    available = {}
    for key, member in models.get_model_weights(name).__members__.items():
        if member.meta["categories"]:
            available[key] = member
    if weights not in (None, RANDOM):
        choose(f"weights of {name}", str(weights), list(available))
    member = available[weights if weights in available else "DEFAULT"]

    settings = _builder_settings(name, member)
    if weights == RANDOM:
        model = _with_random_weights(lambda: models.get_model(name, weights=None, **settings))
    elif download:
        remedy = f"save {member.url} in {torch.hub.get_dir()}/checkpoints"
        model = _with_downloaded_weights(
            name, lambda: models.get_model(name, weights=member), remedy
        )
    else:
        model = models.get_model(name, weights=None, **settings)

    transform = member.transforms()
    size = transform.crop_size[0]
    preprocessing = Preprocessing(
        input_size=size,
        crop=size / transform.resize_size[0],
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )
    return LoadedModel(model, preprocessing, list(member.meta["categories"]))


def _builder_settings(name: str, member: Enum) -> dict[str, Any]:
    """Return the settings that torchvision's builders change along with loading weights."""
    if name.startswith("vit_"):
        return {"image_size": member.meta["min_size"][0]}  # type: ignore[attr-defined]
    if name in ("googlenet", "inception_v3"):
        return {"transform_input": True, "init_weights": False}
    return {}


# ---- timm


def _load_timm(name: str, weights: str | None, download: bool) -> LoadedModel:
    """Build a model of timm, with the weights of its setting."""
    try:
        import timm
        from timm.data import ImageNetInfo, resolve_model_data_config
    except ImportError as error:
        raise InputError(
            f"classifier.model: timm/{name} needs timm; pip install 'diffguard-pl[timm]'"
        ) from error

    # timm's full names are ARCHITECTURE.TAG, where the tag names the weights
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise InputError(
            f"classifier.model: timm has no {architecture!r}; "
            f"{_similar(architecture, timm.list_models())}"
        )
    if weights is not None and weights != RANDOM:
        tag = weights
    full_name = architecture
    if tag:
        variants = timm.list_models(f"{architecture}.*", pretrained=True)
        tags = [variant.partition(".")[2] for variant in variants]
        choose(f"weights of timm/{architecture}", tag, tags)
        full_name = f"{architecture}.{tag}"
    source = timm.get_pretrained_cfg(full_name)
    if source and source.num_classes == 0:
        raise InputError(
            f"classifier.model: timm/{full_name} returns features instead of logits; choose a "
            "model that was trained to classify"
        )

    if weights == RANDOM:
        model = _with_random_weights(lambda: timm.create_model(full_name))
    elif not download:
        model = timm.create_model(full_name)
    elif source and source.has_weights:
        file = source.url
        if source.hf_hub_id:
            file = f"model.safetensors of https://huggingface.co/{source.hf_hub_id}"
        model = _with_downloaded_weights(
            f"timm/{full_name}",
            lambda: timm.create_model(full_name, pretrained=True),
            f"download {file} and set classifier.checkpoint to it",
        )
    else:
        raise InputError(
            f"classifier.model: timm has no weights for {full_name}; set classifier.checkpoint"
        )

    config = resolve_model_data_config(model)
    size = config["input_size"][-1]
    # timm rounds the resized side down, Classifier rounds to the nearest
    resized = math.floor(size / config["crop_pct"])
    interpolation = config["interpolation"]
    preprocessing = Preprocessing(
        input_size=size,
        crop=size / resized,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
    )
    class_names = None
    if model.num_classes == 1000:
        descriptions = ImageNetInfo().label_descriptions()
        class_names = [description.partition(",")[0] for description in descriptions]
    return LoadedModel(model, preprocessing, class_names)


# ---- weights


def load_weights(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint into a model.

    The layouts of torchvision, timm and OpenOOD are supported: a state dict, one inside of
    ``state_dict``, and one with a prefix on every key.

    Args:
        model: Model that takes the weights.
        checkpoint: File, folder with ``model.safetensors``, or name of shipped weights.

    Raises:
        InputError: The file is not found, or does not fit; names the first key that does not.
    """
    path = resolve(checkpoint)
    state = load_tensors(path / "model.safetensors" if path.is_dir() else path)

    # Prefixes may be nested, as in model.module.fc.weight.
    expected = model.state_dict().keys()
    while expected.isdisjoint(state):
        prefix = _common_prefix(state)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}

    for key, tensor in model.state_dict().items():
        if key in state and (problem := weight_problem(state[key], tensor)):
            raise InputError(f"classifier.checkpoint: {path}: its {key} {problem}")
    problem = _load_state(model, state)
    if problem:
        raise InputError(
            f"classifier.checkpoint: {path} does not fit {type(model).__name__}, {problem}; check "
            "classifier.model"
        )


def _common_prefix(state: dict[str, Tensor]) -> str | None:
    """Return the known prefix that all keys have; None if they have none."""
    for prefix in KEY_PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return prefix
    return None


def _load_state(model: nn.Module, state: dict[str, Tensor]) -> str | None:
    """Load a state dict; return what is wrong with the first key that does not fit, if any."""
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        sizes = re.search(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", str(error))
        if sizes is None:
            raise
        return f"its {sizes[1]} is {sizes[2]}, expected {sizes[3]}"
    if missing:
        return f"its {missing[0]} is missing"
    if unexpected:
        return f"its {unexpected[0]} is unexpected"
    return None


def _with_random_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model with the same random weights each time, without changing the random state.

    Heads that start from zero (torchvision's ViT, BiT) get small random weights, too, so that a dry
    run has logits that differ.
    """
    # stacklevel: the line that creates the Classifier
    warnings.warn("classifier: random weights, for a dry run; scores mean nothing", stacklevel=5)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed CUDA as well
        torch.default_generator.manual_seed(100)
        model = build()
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.02)
    return model


def _with_downloaded_weights(name: str, build: Callable[[], nn.Module], remedy: str) -> nn.Module:
    """Build a model whose library downloads its weights, which are read as tensors only."""
    try:
        with tensors_only():
            return build()
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"classifier.weights: those of {name} cannot be downloaded or read ({reason}); {remedy}"
        ) from error


def _similar(name: str, names: Iterable[str]) -> str:
    """Return the part of an error message that lists similar names."""
    similar = get_close_matches(name, names, n=6, cutoff=0.4)
    return f"similar names: {', '.join(similar) or 'none'}"
