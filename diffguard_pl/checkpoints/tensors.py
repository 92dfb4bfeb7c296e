"""TODO."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InputError

# ----------------------------------------------------------------------------------------------------------------- files


class _Inert:
    """Stands in for the callbacks that a Lightning checkpoint mentions; nothing of theirs is run."""

    def __init__(self, *_: Any, **__: Any):
        pass


INERT: list[Any] = [
    (_Inert, f"{package}.callbacks.{module}.{name}")
    for package in ("pytorch_lightning", "lightning.pytorch")
    for module, name in (
        ("model_checkpoint", "ModelCheckpoint"),
        ("early_stopping", "EarlyStopping"),
    )
]


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file (.safetensors, or a pickle of which only tensors are read), by key.

    A ``state_dict`` inside (Lightning, CompVis) is taken out. The file is memory-mapped where its format allows.

    Raises:
        InputError: missing, truncated, not a checkpoint, or one that would have to run code to be loaded.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(INERT):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = (
            f"it holds {name[1]}, which is not a tensor and would run code"
            if name
            else "it is damaged, or no checkpoint"
        )
        raise InputError(
            f"checkpoint {path}: refused, {what}; save its state_dict alone, or download it again"
        ) from error
    except (
        RuntimeError,
        SafetensorError,
        EOFError,
        OSError,
        KeyError,
        ValueError,
        IndexError,
    ) as error:
        size = path.stat().st_size
        raise InputError(
            f"checkpoint {path} ({size:,} bytes): truncated or not a checkpoint; download it again"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not isinstance(state, dict):
        raise InputError(f"checkpoint {path}: holds no state dict but a {type(content).__name__}")
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
