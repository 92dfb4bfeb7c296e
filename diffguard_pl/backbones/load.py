"""Weights into diffusers modules: converted ones, a ``save_pretrained`` folder, or random ones.

Modules are built on the meta device and take over the tensors of the (memory-mapped) file, so that
no weight is initialised for nothing or copied. diffusers is imported when a network is built.
"""

import json
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ..checkpoints.state_dicts import (
    OriginalTensor,
    Weights,
    choose_weights,
    find_weights,
    first_keys,
    is_for_training,
    refuse_wrong_values,
)
from ..checkpoints.tensors import load_content, load_tensors
from ..errors import InputError, beginning
from ..layout import keep_contiguous
from .diffusers_import import diffusers_class

LARGEST_NUMBER = 2**20
"""Largest number in a config.json: with that many layers, memory would run out before an error."""
RANDOM_VALUES = ("uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_")
"""Names of the functions of torch by which layers draw their first weights."""
ConvertedWeights = dict[str, OriginalTensor]
"""Tensors by their key in the diffusers module."""


def find_original(path: Path, keys: Collection[str], use_ema: bool) -> Weights:
    """Find the weights of a network of known keys in a checkpoint in its authors' layout.

    Args:
        path: File of the checkpoint.
        keys: Some of the network's keys, enough to recognise it.
        use_ema: Whether to prefer averages over the steps of the training, if the file has both.

    Raises:
        InputError: The file is damaged, does not have the keys, or has them in several places.
    """
    content = load_content(path)
    found = find_weights(content, keys)
    if not found:
        raise InputError(
            f"checkpoint {path}: does not fit, it has no {' nor '.join(keys)}; "
            f"{first_keys(content)}"
        )
    return choose_weights(found, use_ema, path, "backbone.architecture.use_ema")


def contradicts(stored: Tensor, expected: Tensor) -> bool:
    """Return whether numbers in a file are others than the settings give, apart from rounding."""
    if not stored.is_floating_point() or stored.numel() != expected.numel():
        return True
    tolerance = max(1e-4, 4 * torch.finfo(stored.dtype).eps)
    stored, expected = stored.double().flatten(), expected.double().flatten()
    return not torch.allclose(stored, expected, rtol=tolerance, atol=tolerance / 100)


def load_converted(
    module: nn.Module, weights: ConvertedWeights, path: Path, settings: Mapping[str, str]
) -> Any:
    """Put weights into a module that was built on the meta device.

    Args:
        module: Module that defines the expected keys and shapes.
        weights: Tensors for all keys of the module, and for no others; those of losses, metrics and
            counters are ignored.
        path: File of the weights, for the error message.
        settings: Maps a regular expression of module keys to the setting that decides whether they
            fit, for the error message; the first match counts.

    Returns:
        The module in eval mode, frozen, with weights of its own precision (float32).

    Raises:
        InputError: A key is missing, unexpected or has another shape; names the first such key and
            the setting to check. Or a tensor is not floating point, or has NaN.
    """

    def misfit(key: str, problem: str) -> InputError:
        message = f"checkpoint {path}: does not fit, {problem}"
        for pattern, setting in settings.items():
            if re.search(pattern, key):
                message += f"; check the setting {setting}"
                break
        return InputError(message)

    expected = module.state_dict()
    for key, (original_key, tensor) in weights.items():
        name, shape = beginning(original_key), list(tensor.shape)
        if key not in expected:
            if is_for_training(original_key):
                continue
            raise misfit(key, f"its {name} {shape} is unexpected")
        if tensor.shape != expected[key].shape:
            raise misfit(key, f"its {name} is {shape}, expected {list(expected[key].shape)}")
    for key, tensor in expected.items():
        if key not in weights:
            name = beginning(_original_name(key, weights))
            raise misfit(key, f"its {name} {list(tensor.shape)} is missing")
    refuse_wrong_values(weights, expected, f"checkpoint {path}")

    state = {key: weights[key].tensor.to(tensor.dtype) for key, tensor in expected.items()}
    module.load_state_dict(state, assign=True)
    keep_contiguous(module)
    return module.eval().requires_grad_(False)


def _original_name(key: str, weights: ConvertedWeights) -> str:
    """Return what a missing key would be named in the file, if it has others of the same module."""
    module, _, name = key.rpartition(".")
    for present, (original_key, _) in weights.items():
        if present.rpartition(".")[0] == module:
            return f"{original_key.rpartition('.')[0]}.{name}"
    return key


# ---- diffusers folders


def load_diffusers(class_names: str | tuple[str, ...], folder: Path) -> Any:
    """Load a diffusers module from the folder that its ``save_pretrained`` writes.

    Args:
        class_names: Name of the module's class in diffusers, or several that config.json may choose
            from.
        folder: Folder with config.json and ``*.safetensors`` or ``*.bin``, in one file or several;
            an fp16 variant is only read if no other weights exist.

    Returns:
        The module in eval mode, frozen, in float32.

    Raises:
        InputError: A file is missing or damaged, or config.json names another class or does not
            fit the weights.
    """
    config_file, weight_files = folder / "config.json", _weight_files(folder)
    if not config_file.is_file() or not weight_files:
        raise InputError(
            f"checkpoint {folder}: must be a save_pretrained folder with config.json and "
            "*.safetensors or *.bin"
        )
    config = read_json(config_file)
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, int) and abs(number) > LARGEST_NUMBER for number in numbers):
            raise InputError(
                f"checkpoint {config_file}: {name} must be at most {LARGEST_NUMBER}; download it "
                "again"
            )
    allowed = (class_names,) if isinstance(class_names, str) else class_names
    class_name = _class_name(config, allowed, folder)
    module_class = diffusers_class(class_name)
    num_heads = config.pop("num_heads", None)
    if num_heads is not None and (type(num_heads) is not int or num_heads < 1):
        raise InputError(
            f"checkpoint {config_file}: num_heads must be a number from 1 on, not "
            f"{str(num_heads)[:40]!r}; download it again"
        )

    # Only parameters go to the meta device. Buffers that no file holds, such as DiT's sine
    # positions, are computed by the constructor.
    on_meta = register_module_parameter_registration_hook(_parameter_on_meta)  # type: ignore[arg-type]
    with on_meta, WithoutRandomValues():
        try:
            module = module_class.from_config(config)
        except Exception as error:  # diffusers does not check the settings of a config
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"checkpoint {config_file}: diffusers cannot build a {module_class.__name__} from "
                f"it ({reason}); download it again"
            ) from error
    if num_heads:
        set_num_heads(module, num_heads)

    # Older versions of diffusers did save such buffers.
    computed = {name for name, _ in module.named_buffers()} - set(module.state_dict())
    weights: ConvertedWeights = {}
    for file in weight_files:
        for key, tensor in load_tensors(file).items():
            if key not in computed:
                weights[_current_attention_key(key)] = OriginalTensor(key, tensor)
    return load_converted(module, weights, folder, {".": "config.json of that folder"})


def image_side(network: Any, folder: Path) -> int:
    """Return the side of the images or latents that a network takes, by its config.json.

    Raises:
        InputError: Its sample_size is missing, or not one number.
    """
    size = network.config.sample_size
    if isinstance(size, (list, tuple)) and size and all(part == size[0] for part in size):
        size = size[0]
    if type(size) is not int or size < 1:
        raise InputError(
            f"checkpoint {folder}: sample_size of the network's config.json must be one number of "
            f"pixels, not {str(size)[:40]}; set it to the side of its images"
        )
    return size


def load_class_embedding(folder: Path) -> nn.Embedding:
    """Load the class embedding [N, D] of a folder, ``class_embedding/model.safetensors``."""
    path = folder / "class_embedding" / "model.safetensors"
    weights = {key: OriginalTensor(key, tensor) for key, tensor in load_tensors(path).items()}
    weight = weights.get("weight")
    if weight is None or weight.tensor.ndim != 2:
        raise InputError(f"checkpoint {path}: must hold one tensor weight [N, D]; convert it again")
    classes, dim = weight.tensor.shape
    with without_weights():
        embedding = nn.Embedding(classes, dim)
    return load_converted(embedding, weights, path, {})


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a diffusers config file."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"checkpoint {path}: missing or not JSON; download it again") from error


def block_types(
    attention_levels: Sequence[bool], plain: tuple[str, str], attention: tuple[str, str]
) -> tuple[list[str], list[str]]:
    """Return the names of the blocks on the way down, and in the reverse order of levels up.

    Args:
        attention_levels: Whether each level has attention, the first on the way down first.
        plain: Names of the blocks down and up of a level without attention.
        attention: The same of a level with attention.
    """
    names = [attention if has_attention else plain for has_attention in attention_levels]
    return [down for down, _ in names], [up for _, up in reversed(names)]


def set_num_heads(unet: Any, num_heads: int) -> None:
    """Give every attention of a ``UNet2DModel`` the same number of heads.

    diffusers only supports the same number of channels per head. The number is kept in the config
    as ``num_heads``, for :func:`load_diffusers`.
    """
    unet.register_to_config(num_heads=num_heads)
    for module in unet.modules():
        if hasattr(module, "to_q"):
            module.heads = num_heads
            module.scale = (module.to_q.out_features // num_heads) ** -0.5


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder's weights, in the preferred format.

    Safetensors come before pickles, and full precision (``name.suffix``, or in shards
    ``name-00001-of-00002.suffix``) before half precision (``name.fp16.suffix``).
    """
    for variant in ("", ".fp16"):
        for suffix in (".safetensors", ".bin"):
            stem = re.compile(rf"[^.]+{variant}(-[^.]+)?")
            files = [file for file in folder.glob(f"*{suffix}") if stem.fullmatch(file.stem)]
            if files:
                return sorted(files)
    return []


def _class_name(config: Mapping[str, Any], allowed: tuple[str, ...], folder: Path) -> str:
    """Return the class that a config.json names; an InputError if it is not an allowed one."""
    name = config.get("_class_name", allowed[0])
    # the published DiT-XL/2 is older than DiTTransformer2DModel
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"
    if name not in allowed:
        raise InputError(
            f"checkpoint {folder}: the class in its config.json must be {' or '.join(allowed)}, "
            f"not {name}"
        )
    return name


def _parameter_on_meta(
    module: nn.Module, name: str, parameter: nn.Parameter | None
) -> nn.Parameter | None:
    """Replace a parameter that a module registers by one on the meta device."""
    if parameter is None:
        return None
    return nn.Parameter(parameter.to("meta"), parameter.requires_grad)


@contextmanager
def without_weights() -> Iterator[None]:
    """Context in which modules are built on the meta device, and none of their weights is drawn."""
    with torch.device("meta"), WithoutRandomValues():
        yield


class WithoutRandomValues(TorchFunctionMode):
    """Context in which tensors on the meta device, which hold no values, are not given random ones.

    torch computes even those by Python code that imports its compiler, which takes a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in RANDOM_VALUES:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def _current_attention_key(key: str) -> str:
    """Map a key of an attention layer as diffusers named it until 0.15 to its current name."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    for old, new in names.items():
        key = re.sub(rf"(attentions\.\d+)\.{old}\.", rf"\1.{new}.", key)
    return key


# ---- random weights

RANDOM = "random"
"""Value of a ``checkpoint`` setting that stands for random weights."""


def with_random_weights(*modules: nn.Module, seed: int = 100) -> list[Any]:
    """Fill modules built on the meta device with random weights, for a dry run.

    Weights are normal with variance 1 / fan-in, the same each time, and none of them is zero. They
    are drawn from a separate generator, so the global random state does not change.

    Args:
        modules: Modules on the meta device.
        seed: Seed of the generator.

    Returns:
        The modules in eval mode, frozen.
    """
    warnings.warn("backbone: random weights, for a dry run; scores mean nothing", stacklevel=2)
    generator = torch.Generator().manual_seed(seed)

    def random_tensor(key: str, shape: torch.Size) -> Tensor:
        # one dimension: a bias, or the weight of a norm
        if len(shape) == 1:
            return torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
        fan_in = shape[1:].numel()
        return torch.randn(shape, generator=generator) * fan_in**-0.5

    filled = []
    for module in modules:
        weights = {
            key: OriginalTensor(key, random_tensor(key, tensor.shape))
            for key, tensor in module.state_dict().items()
        }
        filled.append(load_converted(module, weights, Path(RANDOM), {}))
    return filled
