"""Original checkpoint layouts -> diffusers modules.

guided-diffusion and CompVis latent-diffusion share one UNet key layout; what differs is the attention inside. A conversion yields,
for each diffusers key, the original key and the tensor, so that an error can name the key that the user's file has.
"""

import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel, UNet2DModel, VQModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..errors import InputError


@dataclass(frozen=True)
class GuidedDiffusionArchitecture:
    """guided-diffusion's flags, by their own names; the defaults are those of ``256x256_diffusion_uncond.pt``.

    Args:
        image_size: side of its images.
        num_channels: of the first level.
        channel_mult: of each level.
        num_res_blocks: a level.
        attention_resolutions: sides, in pixels, of the feature maps with attention.
        num_heads: of attention, unless num_head_channels is given.
        num_head_channels: channels of each attention head; -1: use num_heads.
        use_new_attention_order: queries, keys and values are split before the heads.
        resblock_updown: residual blocks, not convolutions, change the resolution.
        use_scale_shift_norm: the time step scales and shifts the normalised features.
        learn_sigma: the last 3 of 6 output channels are variances.
        class_cond: takes a class label.
        num_classes: that it knows, if it takes one.
        noise_schedule: linear or cosine.
        diffusion_steps: of training.
        rescale_timesteps: the network is told time steps as if there were 1000 of them (improved-diffusion's models).
    """

    image_size: int = 256
    num_channels: int = 256
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 4
    num_head_channels: int = 64
    use_new_attention_order: bool = False
    resblock_updown: bool = True
    use_scale_shift_norm: bool = True
    learn_sigma: bool = True
    class_cond: bool = False
    num_classes: int = 1000
    noise_schedule: str = "linear"
    diffusion_steps: int = 1000
    rescale_timesteps: bool = False

    @property
    def attention(self) -> list[bool]:
        """Whether each level has attention."""
        return [self.image_size >> level in self.attention_resolutions for level in range(len(self.channel_mult))]


@dataclass(frozen=True)
class FirstStageArchitecture:
    """The VQ first stage, by the names of CompVis' ``ddconfig``; the defaults are those of ``cin256-v2``.

    Args:
        resolution: side of its images.
        ch: channels of the first level.
        ch_mult: of each level.
        num_res_blocks: a level.
        attn_resolutions: sides of the feature maps with attention.
        z_channels: of the encoder's output.
        embed_dim: of a code.
        n_embed: codes.
    """

    resolution: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    z_channels: int = 3
    embed_dim: int = 3
    n_embed: int = 8192

    @property
    def attention(self) -> list[bool]:
        """Whether each level has attention."""
        return [self.resolution >> level in self.attn_resolutions for level in range(len(self.ch_mult))]


@dataclass(frozen=True)
class LatentDiffusionArchitecture:
    """A class-conditional latent diffusion model, by the names of CompVis' ``unet_config``; the defaults are ``cin256-v2``'s.

    Args:
        image_size: side of the latents.
        model_channels: of the first level.
        channel_mult: of each level.
        num_res_blocks: a level.
        attention_resolutions: downsampling rates (not sides) of the levels with a spatial transformer.
        num_heads: of attention, unless num_head_channels is given.
        num_head_channels: channels of each attention head; -1: use num_heads.
        transformer_depth: blocks of each spatial transformer.
        context_dim: of the class embedding.
        n_classes: classes, the last one meaning "no class".
        scale_factor: of the latents.
        linear_start: first beta of the noise schedule.
        linear_end: last beta.
        timesteps: of training.
        first_stage: the autoencoder.
    """

    image_size: int = 64
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 5)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (8, 4, 2)
    num_heads: int = 1
    num_head_channels: int = -1
    transformer_depth: int = 1
    context_dim: int = 512
    n_classes: int = 1001
    scale_factor: float = 1.0
    linear_start: float = 0.0015
    linear_end: float = 0.0195
    timesteps: int = 1000
    first_stage: FirstStageArchitecture = field(default_factory=FirstStageArchitecture)

    @property
    def attention(self) -> list[bool]:
        """Whether each level has a spatial transformer."""
        return [2**level in self.attention_resolutions for level in range(len(self.channel_mult))]


class Origin(NamedTuple):
    """A tensor and the key that it had in the checkpoint."""

    key: str
    tensor: Tensor


Converted = dict[str, Origin]


# ----------------------------------------------------------------------------------------------------------------- files


class _Inert:
    """Stands in for the callbacks that a Lightning checkpoint mentions; nothing of theirs is run."""

    def __init__(self, *_: Any, **__: Any):
        pass


INERT: list[Any] = [
    (_Inert, f"{package}.callbacks.{module}.{name}")
    for package in ("pytorch_lightning", "lightning.pytorch")
    for module, name in (("model_checkpoint", "ModelCheckpoint"), ("early_stopping", "EarlyStopping"))
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
        what = f"it holds {name[1]}, which is not a tensor and would run code" if name else "it is damaged, or no checkpoint"
        raise InputError(f"checkpoint {path}: refused, {what}; save its state_dict alone, or download it again") from error
    except (RuntimeError, SafetensorError, EOFError, OSError, KeyError, ValueError, IndexError) as error:
        size = path.stat().st_size
        raise InputError(f"checkpoint {path} ({size:,} bytes): truncated or not a checkpoint; download it again") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not isinstance(state, dict):
        raise InputError(f"checkpoint {path}: holds no state dict but a {type(content).__name__}")
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


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
        return InputError(f"checkpoint {path} does not fit: {what}" + (f"; look at the setting {setting}" if setting else ""))

    expected = module.state_dict()
    for key, origin in weights.items():
        if key not in expected:
            raise complain(key, f"its {origin.key} {list(origin.tensor.shape)} is one too many")
        if origin.tensor.shape != expected[key].shape:
            raise complain(key, f"its {origin.key} is {list(origin.tensor.shape)}, expected {list(expected[key].shape)}")
    for key, tensor in expected.items():
        if key not in weights:
            raise complain(key, f"it has no {key} {list(tensor.shape)}")
    module.load_state_dict({key: weights[key].tensor.to(expected[key].dtype) for key in expected}, assign=True)
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
        raise InputError(f"checkpoint {folder}: expected a save_pretrained folder with config.json and *.safetensors or *.bin")
    settings = read_json(config)
    chosen = _choose_kind(settings, kind if isinstance(kind, tuple) else (kind,), folder)
    num_heads = settings.pop("num_heads", None)
    # parameters alone go to the meta device: no file holds buffers such as DiT's sine positions, so they are computed here
    with register_module_parameter_registration_hook(_without_memory):  # type: ignore[arg-type]  # it may return one
        try:
            module = chosen.from_config(settings)
        except (TypeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"checkpoint {config}: diffusers cannot build a {chosen.__name__} of it ({reason})") from error
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
            files = [file for file in sorted(folder.glob(f"*{suffix}")) if re.fullmatch(rf"[^.]+{variant}(-[^.]+)?", file.stem)]
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
    raise InputError(f"checkpoint {folder}: holds a {name}, expected a {' or '.join(kind.__name__ for kind in kinds)}")


def _without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def _attention_key(key: str) -> str:
    """What diffusers called query, key, value and output of attention until 0.15 -> what it calls them now."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{names[m[2]]}.", key)


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
        random = {key: Origin(key, weights(key, tensor.shape)) for key, tensor in module.state_dict().items()}
        return fit(module, random, Path(RANDOM), {})

    return [filled(module) for module in modules]


# ----------------------------------------------------------------------------------------------------- guided diffusion


def guided_diffusion_unet(path: Path, architecture: GuidedDiffusionArchitecture) -> UNet2DModel:
    """The UNet of a guided-diffusion checkpoint."""
    a = architecture
    settings = {
        r"^class_embedding": "backbone.architecture.class_cond",
        r"^conv_out|^conv_norm_out": "backbone.architecture.learn_sigma",
        r"^conv_in|^time_embedding": "backbone.architecture.num_channels",
        r"time_emb_proj": "backbone.architecture.use_scale_shift_norm",
        r"attentions": "backbone.architecture.attention_resolutions and num_head_channels",
        r"samplers": "backbone.architecture.resblock_updown and num_res_blocks",
        r".": "backbone.architecture.channel_mult and num_res_blocks",
    }
    unet = guided_diffusion_module(a)
    weights = _convert_unet(load_tensors(path), a.channel_mult, a.num_res_blocks, a.attention)
    return fit(unet, _split_qkv(weights, unet, a.use_new_attention_order), path, settings)


def guided_diffusion_module(architecture: GuidedDiffusionArchitecture) -> UNet2DModel:
    """A UNet of that architecture, without weights: on the meta device."""
    a = architecture
    plain_down, plain_up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if a.resblock_updown else ("DownBlock2D", "UpBlock2D")
    )
    change = "resnet" if a.resblock_updown else "conv"
    channels = [a.num_channels * m for m in a.channel_mult]
    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=a.image_size,
            out_channels=6 if a.learn_sigma else 3,
            block_out_channels=channels,
            layers_per_block=a.num_res_blocks,
            down_block_types=["AttnDownBlock2D" if attention else plain_down for attention in a.attention],
            up_block_types=["AttnUpBlock2D" if attention else plain_up for attention in reversed(a.attention)],
            downsample_type=change,
            upsample_type=change,
            resnet_time_scale_shift="scale_shift" if a.use_scale_shift_norm else "default",
            attention_head_dim=a.num_head_channels if a.num_head_channels > 0 else 1,
            attn_norm_num_groups=32,
            num_class_embeds=a.num_classes if a.class_cond else None,
        )
    if a.num_head_channels <= 0:
        unet.register_to_config(num_heads=a.num_heads)
        set_heads(unet, a.num_heads)
    return unet


def set_heads(unet: UNet2DModel, num_heads: int) -> None:
    """Give every attention the same number of heads, where diffusers gives it the same number of channels a head."""
    for module in unet.modules():
        if hasattr(module, "to_q"):
            module.heads = num_heads
            module.scale = (module.to_q.out_features // num_heads) ** -0.5


def _split_qkv(weights: Converted, unet: UNet2DModel, new_order: bool) -> Converted:
    """guided-diffusion keeps q, k and v of attention in one 1-d convolution: per head, or (new order) heads within each."""
    split: Converted = {}
    for key, (original, tensor) in weights.items():
        module, _, name = key.rpartition(".")
        if module.endswith(".qkv"):
            attention = module.removesuffix(".qkv")
            heads = getattr(_submodule(unet, attention), "heads", 1)
            if len(tensor) % (3 * heads):
                heads = 1  # of another architecture: fit() will say so
            tensor = tensor.squeeze(-1) if tensor.ndim == 3 else tensor
            rest = tensor.shape[1:]
            parts = tensor.reshape(3, -1, *rest) if new_order else tensor.reshape(heads, 3, -1, *rest).transpose(0, 1)
            for letter, part in zip("qkv", parts.reshape(3, -1, *rest), strict=True):
                split[f"{attention}.to_{letter}.{name}"] = Origin(original, part.contiguous())
        elif module.endswith(".to_out.0") and tensor.ndim == 3:
            split[key] = Origin(original, tensor.squeeze(-1))
        else:
            split[key] = Origin(original, tensor)
    return split


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


# ----------------------------------------------------------------------------------------------------- latent diffusion


def latent_diffusion(path: Path, architecture: LatentDiffusionArchitecture) -> tuple[UNet2DConditionModel, nn.Embedding, VQModel]:
    """UNet, class embedding and VQ first stage of a CompVis latent-diffusion checkpoint."""
    a = architecture
    tensors = load_tensors(path)
    settings = {
        r"^conv_in|^time_embedding|^conv_out": "backbone.architecture.model_channels",
        r"attn2.to_[kv]": "backbone.architecture.context_dim",
        r"transformer_blocks": "backbone.architecture.attention_resolutions and transformer_depth",
        r"attentions": "backbone.architecture.attention_resolutions",
        r".": "backbone.architecture.channel_mult and num_res_blocks",
    }
    unet, embedding = latent_diffusion_modules(a)
    weights = _convert_unet(_under(tensors, "model.diffusion_model."), a.channel_mult, a.num_res_blocks, a.attention)
    fit(unet, {key: Origin(f"model.diffusion_model.{k}", v) for key, (k, v) in weights.items()}, path, settings)
    classes = {
        key: Origin(f"cond_stage_model.embedding.{key}", v) for key, v in _under(tensors, "cond_stage_model.embedding.").items()
    }
    fit(embedding, classes, path, {".": "backbone.architecture.n_classes and context_dim"})
    return unet, embedding, _first_stage(tensors, a.first_stage, a.scale_factor, path)


def latent_diffusion_modules(architecture: LatentDiffusionArchitecture) -> tuple[UNet2DConditionModel, nn.Embedding]:
    """UNet and class embedding of that architecture, without weights: on the meta device."""
    a = architecture
    channels = [a.model_channels * m for m in a.channel_mult]
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=a.image_size,
            in_channels=a.first_stage.embed_dim,
            out_channels=a.first_stage.embed_dim,
            block_out_channels=channels,
            layers_per_block=a.num_res_blocks,
            down_block_types=["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in a.attention],
            up_block_types=["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(a.attention)],
            # diffusers calls it a dimension; it is the number of heads
            attention_head_dim=[c // a.num_head_channels if a.num_head_channels > 0 else a.num_heads for c in channels],
            transformer_layers_per_block=a.transformer_depth,
            cross_attention_dim=a.context_dim,
        )
        embedding = nn.Embedding(a.n_classes, a.context_dim)
    return unet, embedding


def _first_stage(tensors: dict[str, Tensor], architecture: FirstStageArchitecture, scale_factor: float, path: Path) -> VQModel:
    prefix = "first_stage_model."
    weights = {}
    for key, tensor in _under(tensors, prefix).items():
        if key.startswith(("loss.", "colorize")):
            continue
        new = _first_stage_key(key, len(architecture.ch_mult))
        if re.search(r"attentions\.\d+\.to_", new) and tensor.ndim == 4:
            tensor = tensor.squeeze(-1).squeeze(-1)
        weights[new] = Origin(prefix + key, tensor)
    settings = {
        r"^quantize": "backbone.architecture.first_stage.n_embed and embed_dim",
        r"quant_conv": "backbone.architecture.first_stage.z_channels and embed_dim",
        r"(en|de)coder.conv_": "backbone.architecture.first_stage.ch and z_channels",
        r"attentions": "backbone.architecture.first_stage.attn_resolutions",
        r".": "backbone.architecture.first_stage.ch_mult and num_res_blocks",
    }
    return fit(first_stage_module(architecture, scale_factor), weights, path, settings)


def first_stage_module(architecture: FirstStageArchitecture, scale_factor: float) -> VQModel:
    """A VQ first stage of that architecture, without weights: on the meta device."""
    a = architecture
    with torch.device("meta"):
        return VQModel(
            sample_size=a.resolution,
            down_block_types=["AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D" for attention in a.attention],
            up_block_types=["AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D" for attention in reversed(a.attention)],
            block_out_channels=[a.ch * m for m in a.ch_mult],
            layers_per_block=a.num_res_blocks,
            latent_channels=a.z_channels,
            vq_embed_dim=a.embed_dim,
            num_vq_embeddings=a.n_embed,
            scaling_factor=scale_factor,
        )


def _first_stage_key(key: str, levels: int) -> str:
    """CompVis' name of a VQ tensor -> diffusers'."""
    rules: list[tuple[str, Any]] = [
        (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
        (r"\.down\.(\d+)\.attn\.", r".down_blocks.\1.attentions."),
        (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
        (r"\.up\.(\d+)\.block\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.resnets."),
        (r"\.up\.(\d+)\.attn\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.attentions."),
        (r"\.up\.(\d+)\.upsample\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.upsamplers.0."),
        (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
        (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
        (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
        (r"\.nin_shortcut\.", ".conv_shortcut."),
        (r"\.norm_out\.", ".conv_norm_out."),
        (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
        (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
        (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    ]
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


# --------------------------------------------------------------------------------------------------- what both have alike

INNER = [
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time_emb_proj."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".conv_shortcut."),
    (r"(samplers\.0)\.(op|conv)\.", r"\1.conv."),
]
ATTENTION = [(r"(attentions\.\d+)\.norm\.", r"\1.group_norm."), (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0.")]


def _convert_unet(
    tensors: Mapping[str, Tensor], channel_mult: tuple[int, ...], res_blocks: int, attention: list[bool]
) -> Converted:
    places = dict(_places(len(channel_mult), res_blocks, attention))
    spatial_transformer = any(".transformer_blocks." in key for key in tensors)
    converted: Converted = {}
    for key, tensor in tensors.items():
        match = re.match(r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+|\w+\.\d+|label_emb)\.", key)
        place = match and places.get(match[1])
        new = key if place is None else f"{place}.{key[match.end() :]}"  # type: ignore[union-attr]
        for pattern, replacement in INNER if spatial_transformer else INNER + ATTENTION:
            new = re.sub(pattern, replacement, new)
        converted[new] = Origin(key, tensor)
    return converted


def _places(levels: int, res_blocks: int, attention: list[bool]) -> Iterator[tuple[str, str]]:
    """Original module path -> diffusers module path, for every block of the UNet."""
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (("label_emb", "class_embedding"), ("input_blocks.0.0", "conv_in"))
    k = 1
    for level in range(levels):
        for j in range(res_blocks):
            yield f"input_blocks.{k}.0", f"down_blocks.{level}.resnets.{j}"
            if attention[level]:
                yield f"input_blocks.{k}.1", f"down_blocks.{level}.attentions.{j}"
            k += 1
        if level < levels - 1:
            yield f"input_blocks.{k}.0", f"down_blocks.{level}.downsamplers.0"
            k += 1
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    k = 0
    for block, level in enumerate(reversed(range(levels))):
        for j in range(res_blocks + 1):
            yield f"output_blocks.{k}.0", f"up_blocks.{block}.resnets.{j}"
            if attention[level]:
                yield f"output_blocks.{k}.1", f"up_blocks.{block}.attentions.{j}"
            if level > 0 and j == res_blocks:
                yield f"output_blocks.{k}.{1 + attention[level]}", f"up_blocks.{block}.upsamplers.0"
            k += 1
    yield from (("out.0", "conv_norm_out"), ("out.2", "conv_out"))
