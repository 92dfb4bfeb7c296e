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
    """Stand-in for an object beside the tensors of a checkpoint; none of its code is imported."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


HARMLESS_CLASSES = (
    "argparse.Namespace",
    "datetime.datetime",
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
)
"""Classes of what training programs save beside the tensors: arguments, scores, callbacks."""
PLACEHOLDERS: list[Any] = [(_Placeholder, name) for name in HARMLESS_CLASSES]


class _ShortSearch:
    """The module `re` for torch, searching the beginning of a text only.

    ``torch.load`` words an error with patterns that take time quadratic in the length of its text,
    and the text has names and values of the file: minutes for 100 kB.
    """

    LENGTH = 2000

    def __getattr__(self, name: str) -> Any:
        return getattr(re, name)

    def search(self, pattern: str, text: str) -> re.Match[str] | None:
        return re.search(pattern, text[: self.LENGTH])


@contextmanager
def tensors_only() -> Iterator[None]:
    """Make every ``torch.load`` inside read tensors only, also those of other libraries.

    A pickle that would run code raises ``pickle.UnpicklingError``. torchvision and timm have no
    argument for this, so torch's environment variable is set, by one thread at a time.
    """
    serialization: Any = torch.serialization
    with _ENVIRONMENT_LOCK:
        before = os.environ.get(FORCE_WEIGHTS_ONLY)
        os.environ[FORCE_WEIGHTS_ONLY] = "1"
        serialization.re = _ShortSearch()
        try:
            with torch.serialization.safe_globals(PLACEHOLDERS):
                yield
        finally:
            serialization.re = re
            if before is None:
                del os.environ[FORCE_WEIGHTS_ONLY]
            else:
                os.environ[FORCE_WEIGHTS_ONLY] = before


def load_content(path: Path) -> Any:
    """Load what a checkpoint file holds: tensors in containers, such as nested dicts.

    The file is memory-mapped if its format allows it.

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
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        # torch names the class or function that it refused to import
        refused = re.search(r"GLOBAL (\S{1,100})", str(error))
        problem = "damaged, or not a checkpoint"
        if refused:
            problem = f"holds {refused[1]}, which is not a tensor and would run code"
        raise InputError(
            f"checkpoint {path}: refused, {problem}; save its state_dict only, or download it again"
        ) from error
    # a damaged pickle may call and index anything, so any exception is possible
    except Exception as error:
        size = path.stat().st_size
        raise InputError(
            f"checkpoint {path}: truncated or not a checkpoint ({size:,} bytes); download it again"
        ) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors by key of a file that holds one state dict and nothing else.

    Raises:
        InputError: As for :func:`load_content`, or the file holds something else.
    """
    state = load_content(path)
    if not state or not isinstance(state, dict):
        raise InputError(
            f"checkpoint {path}: must hold a state dict, not a {type(state).__name__}; save the "
            "model's state_dict()"
        )
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}


def weight_problem(tensor: Tensor, expected: Tensor) -> str | None:
    """Return what keeps a tensor from being a weight; None if nothing does.

    Args:
        tensor: Tensor of a checkpoint.
        expected: Weight of the module, on any device.
    """
    if tensor.is_meta:
        return "has a shape and no values; save the weights from a CPU or GPU"
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else "sparse"
        return f"is {kind}, which the networks are not; save the weights as they were trained"
    if not expected.is_floating_point():
        return None
    if not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        return f"is {dtype}, not floating point; save the weights as they were trained"
    # types of one byte have no arithmetic
    values = tensor.float() if tensor.itemsize == 1 else tensor

    # A sum is not finite if any value is not. It may overflow, so only then look at each value;
    # -inf stands in masks, beside zeros, and masks are weights of some modules.
    if values.sum().isfinite():
        return None
    if values.isnan().any():
        return "has NaN; the training diverged or the file is damaged, choose another checkpoint"
    if values.isposinf().any() or not values.isfinite().any():
        return "has infinite values; choose another checkpoint"
    return None


def _is_zip(path: Path) -> bool:
    """Return whether a pickle is in torch's zip format, which can be memory-mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
