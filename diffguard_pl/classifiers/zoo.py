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
from ..checkpoints.state_dicts import (
    Weights,
    choose_weights,
    find_weights,
    first_keys,
    is_for_training,
    refuse_wrong_values,
)
from ..checkpoints.tensors import load_content, tensors_only
from ..errors import InputError, beginning, choose

INTERPOLATIONS = ["bilinear", "bicubic"]
RANDOM = "random"
"""Value of ``weights`` that stands for random weights."""
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
        raise InputError(f"classifier.model: timm/{name} needs timm; pip install timm") from error

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


def load_weights(model: nn.Module, checkpoint: str, use_ema: bool = True) -> None:
    """Load a checkpoint into a model.

    The weights may be anywhere in the file, with any prefix: they are where the model's keys are.

    Args:
        model: Model that takes the weights.
        checkpoint: File, folder with ``model.safetensors``, or name of shipped weights.
        use_ema: Whether to prefer averages over the steps of the training, if the file has both.
            Defaults to True.

    Raises:
        InputError: The file is not found, or does not fit; names the first key that does not.
    """
    path = resolve(checkpoint)
    content = load_content(path / "model.safetensors" if path.is_dir() else path)

    expected = model.state_dict()
    found = find_weights(content, expected.keys())
    # networks of one family have the same keys, e.g. those of a teacher and its student
    fitting = [weights for weights in found if _has_shapes(weights, expected)]
    if not found:
        problem: str | None = "it has none of its keys"
    else:
        weights = choose_weights(fitting or found[:1], use_ema, path, "classifier.use_ema")
        refuse_wrong_values(weights.tensors, expected, f"classifier.checkpoint: {path}")
        problem = _load_state(model, weights)
    if problem:
        if not found or not found[0].is_complete:
            problem += f"; {first_keys(content)}"
        raise InputError(
            f"classifier.checkpoint: {path} does not fit {type(model).__name__}, {problem}; check "
            "classifier.model"
        )


def _has_shapes(weights: Weights, expected: dict[str, Tensor]) -> bool:
    """Return whether all tensors have the shapes of the model's."""
    tensors = weights.tensors
    return all(
        tensors[key].tensor.shape == tensor.shape
        for key, tensor in expected.items()
        if key in tensors
    )


def _load_state(model: nn.Module, weights: Weights) -> str | None:
    """Load weights; return what is wrong with the first key that does not fit, if any."""
    tensors = weights.tensors

    def original(key: str) -> str:
        return beginning(tensors[key].key if key in tensors else key)

    try:
        state = {key: entry.tensor for key, entry in tensors.items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        sizes = re.search(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", str(error))
        if sizes is None:
            return beginning(str(error))
        return f"its {original(sizes[1])} is {sizes[2]}, expected {sizes[3]}"
    if missing:
        return f"its {missing[0]} is missing"
    for key in unexpected:
        # integers count something, and are never weights
        if tensors[key].tensor.is_floating_point() and not is_for_training(key):
            return f"its {original(key)} is unexpected"
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
