"""The one place where weights are read: tensors only, so that no file can run code."""

import os
import pickle
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InputError
from .mistaken import refuse_mistaken_file

FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Environment variable of torch that makes every ``torch.load`` read tensors only."""
_ENVIRONMENT_LOCK = threading.RLock()


class _Placeholder:
    """Stand-in for a Lightning callback named in a checkpoint; none of its code is imported."""

    def __init__(self, *_: Any, **__: Any):
        pass


LIGHTNING_CALLBACKS: list[Any] = [
    (_Placeholder, f"{package}.callbacks.{name}")
    for package in ("pytorch_lightning", "lightning.pytorch")
    for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
]
"""Classes that Lightning's checkpoints mention, each with its placeholder."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """Make every ``torch.load`` inside read tensors only, also those of other libraries.

    A pickle that would run code raises ``pickle.UnpicklingError``. torchvision and timm have no
    argument for this, so torch's environment variable is set, by one thread at a time.
    """
    with _ENVIRONMENT_LOCK:
        before = os.environ.get(FORCE_WEIGHTS_ONLY)
        os.environ[FORCE_WEIGHTS_ONLY] = "1"
        try:
            with torch.serialization.safe_globals(LIGHTNING_CALLBACKS):
                yield
        finally:
            if before is None:
                del os.environ[FORCE_WEIGHTS_ONLY]
            else:
                os.environ[FORCE_WEIGHTS_ONLY] = before


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a checkpoint file by key.

    The file is memory-mapped if its format allows it. If it holds a ``state_dict`` (Lightning,
    CompVis), the tensors of that are returned.

    Args:
        path: A .safetensors file, or a pickle written by ``torch.save``.

    Raises:
        InputError: The file is missing, truncated or not a checkpoint, or would run code.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path}: file not found; check the path")
    refuse_mistaken_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with tensors_only():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        # torch names the class or function that it refused to import
        refused = re.search(r"GLOBAL (\S+)", str(error))
        problem = "damaged, or not a checkpoint"
        if refused:
            problem = f"holds {refused[1]}, which is not a tensor and would run code"
        raise InputError(
            f"checkpoint {path}: refused, {problem}; save its state_dict only, or download it again"
        ) from error
    except Exception as error:  # a truncated or damaged file may make torch raise anything
        size = path.stat().st_size
        raise InputError(
            f"checkpoint {path}: truncated or not a checkpoint ({size:,} bytes); download it again"
        ) from error

    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not isinstance(state, dict):
        raise InputError(
            f"checkpoint {path}: must hold a state dict, not a {type(content).__name__}; save the "
            "model's state_dict()"
        )
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}


def weight_problem(tensor: Tensor, expected: Tensor) -> str | None:
    """Return what keeps a tensor from being a weight; None if nothing does.

    Args:
        tensor: Tensor of a checkpoint.
        expected: Weight of the module, on any device.
    """
    if not expected.is_floating_point():
        return None
    if not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        return f"is {dtype}, not floating point; save the weights as they were trained"
    # types of one byte have no arithmetic
    values = tensor.float() if tensor.itemsize == 1 else tensor

    # A sum is not finite if any value is not. It may overflow, so only then look at each value;
    # -inf stands in masks, which are weights of some modules.
    if values.sum().isfinite():
        return None
    if values.isnan().any():
        return "has NaN; the training diverged or the file is damaged, choose another checkpoint"
    if values.isposinf().any():
        return "has infinite values; choose another checkpoint"
    return None


def _is_zip(path: Path) -> bool:
    """Return whether a pickle is in torch's zip format, which can be memory-mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
