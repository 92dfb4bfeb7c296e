"""TODO."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..checkpoints.tensors import load_tensors
from ..errors import InputError


class Origin(NamedTuple):
    """A tensor and the key that it had in the checkpoint."""

    key: str
    tensor: Tensor


Converted = dict[str, Origin]


def fit(module: nn.Module, weights: Converted, path: Path, settings: Mapping[str, str]) -> Any:
    """Put weights into a module built on the meta device; in float32, in eval mode, frozen.

    Args:
        module: with the keys and shapes that are expected.
        weights: what there is.
        path: for the error.
        settings: regular expression of diffusers keys -> the setting that decides whether they fit; the first match counts.

    Raises:
        InputError: a key is missing, left over or of another shape; names the first and the setting.
    """

    def complain(key: str, what: str) -> InputError:
        setting = next((s for pattern, s in settings.items() if re.search(pattern, key)), None)
        return InputError(
            f"checkpoint {path} does not fit: {what}"
            + (f"; look at the setting {setting}" if setting else "")
        )

    expected = module.state_dict()
    for key, origin in weights.items():
        if key not in expected:
            raise complain(key, f"its {origin.key} {list(origin.tensor.shape)} is one too many")
        if origin.tensor.shape != expected[key].shape:
            raise complain(
                key,
                f"its {origin.key} is {list(origin.tensor.shape)}, expected {list(expected[key].shape)}",
            )
    for key, tensor in expected.items():
        if key not in weights:
            raise complain(key, f"it has no {key} {list(tensor.shape)}")
    module.load_state_dict(
        {key: weights[key].tensor.to(expected[key].dtype) for key in expected}, assign=True
    )
    return module.eval().requires_grad_(False)


def load_diffusers(kind: type | tuple[type, ...], folder: Path) -> Any:
    """A diffusers module from its ``save_pretrained`` folder: config.json, and weights in one file or several.

    Args:
        kind: the module's class, or those that config.json may choose from.
        folder: with ``*.safetensors`` or ``*.bin``; an fp16 variant is only read where there is no other.

    Raises:
        InputError: a file is missing or damaged, of another class, or does not fit config.json.
    """
    config, files = folder / "config.json", _weight_files(folder)
    if not config.is_file() or not files:
        raise InputError(
            f"checkpoint {folder}: expected a save_pretrained folder with config.json and *.safetensors or *.bin"
        )
    settings = read_json(config)
    chosen = _choose_kind(settings, kind if isinstance(kind, tuple) else (kind,), folder)
    num_heads = settings.pop("num_heads", None)
    # parameters alone go to the meta device: no file holds buffers such as DiT's sine positions, so they are computed here
    with register_module_parameter_registration_hook(_without_memory):  # type: ignore[arg-type]  # it may return one
        try:
            module = chosen.from_config(settings)
        except (TypeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"checkpoint {config}: diffusers cannot build a {chosen.__name__} of it ({reason})"
            ) from error
    if num_heads:
        module.register_to_config(num_heads=num_heads)
        set_heads(module, num_heads)
    computed = {name for name, _ in module.named_buffers()} - set(module.state_dict())
    tensors = {
        _attention_key(key): Origin(key, tensor)
        for file in files
        for key, tensor in load_tensors(file).items()
        if key not in computed  # which older versions did save
    }
    return fit(module, tensors, folder, {".": "config.json of that folder"})


def read_json(path: Path) -> dict[str, Any]:
    """The content of a diffusers config file."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"checkpoint {path}: missing, or not JSON; download it again") from error


def _weight_files(folder: Path) -> list[Path]:
    """Safetensors before pickles, and full precision (``name.suffix``) before a variant (``name.fp16.suffix``)."""
    for variant in ("", ".fp16"):
        for suffix in (".safetensors", ".bin"):
            files = [
                file
                for file in sorted(folder.glob(f"*{suffix}"))
                if re.fullmatch(rf"[^.]+{variant}(-[^.]+)?", file.stem)
            ]
            if files:
                return files
    return []


def _choose_kind(settings: Mapping[str, Any], kinds: tuple[type, ...], folder: Path) -> Any:
    name = settings.get("_class_name", kinds[0].__name__)
    if name == "Transformer2DModel" and settings.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"  # as the published DiT-XL/2 calls itself, for it is older than that class
    for kind in kinds:
        if kind.__name__ == name:
            return kind
    raise InputError(
        f"checkpoint {folder}: holds a {name}, expected a {' or '.join(kind.__name__ for kind in kinds)}"
    )


def _without_memory(
    module: nn.Module, name: str, parameter: nn.Parameter | None
) -> nn.Parameter | None:
    return (
        None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    )


def _attention_key(key: str) -> str:
    """What diffusers called query, key, value and output of attention until 0.15 -> what it calls them now."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(
        r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{names[m[2]]}.", key
    )


RANDOM = "random"
"""In place of a checkpoint: weights for a dry run."""


def with_random_weights(*modules: nn.Module, seed: int = 100) -> Any:
    """Modules built on the meta device with random weights, the same each time, and with no layer that is zero.

    They are normal, of variance 1 / inputs, and drawn from a generator of their own, so that no other random number changes.
    """
    warnings.warn("backbone: random weights, for a dry run; scores mean nothing", stacklevel=2)
    generator = torch.Generator().manual_seed(seed)

    def weights(key: str, shape: torch.Size) -> Tensor:
        if len(shape) == 1:  # of a norm, or a bias
            return torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
        return torch.randn(shape, generator=generator) * shape[1:].numel() ** -0.5

    def filled(module: nn.Module) -> nn.Module:
        random = {
            key: Origin(key, weights(key, tensor.shape))
            for key, tensor in module.state_dict().items()
        }
        return fit(module, random, Path(RANDOM), {})

    return [filled(module) for module in modules]


def set_heads(unet: UNet2DModel, num_heads: int) -> None:
    """Give every attention the same number of heads, where diffusers gives it the same number of channels a head."""
    for module in unet.modules():
        if hasattr(module, "to_q"):
            module.heads = num_heads
            module.scale = (module.to_q.out_features // num_heads) ** -0.5
