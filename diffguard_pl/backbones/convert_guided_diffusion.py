"""Original checkpoint layouts -> diffusers modules.

guided-diffusion and CompVis latent-diffusion share one UNet key layout; what differs is the attention inside. A conversion yields,
for each diffusers key, the original key and the tensor, so that an error can name the key that the user's file has.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..checkpoints.architectures import GuidedDiffusionArchitecture
from ..checkpoints.tensors import load_tensors
from .load import Converted, Origin, fit, set_heads

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
    weights = _convert_unet(
        load_tensors(path), a.channel_mult, a.num_res_blocks, a.attention_levels
    )
    return fit(unet, _split_qkv(weights, unet, a.use_new_attention_order), path, settings)


def guided_diffusion_module(architecture: GuidedDiffusionArchitecture) -> UNet2DModel:
    """A UNet of that architecture, without weights: on the meta device."""
    a = architecture
    plain_down, plain_up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if a.resblock_updown
        else ("DownBlock2D", "UpBlock2D")
    )
    change = "resnet" if a.resblock_updown else "conv"
    channels = [a.num_channels * m for m in a.channel_mult]
    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=a.image_size,
            out_channels=6 if a.learn_sigma else 3,
            block_out_channels=channels,
            layers_per_block=a.num_res_blocks,
            down_block_types=[
                "AttnDownBlock2D" if attention else plain_down for attention in a.attention_levels
            ],
            up_block_types=[
                "AttnUpBlock2D" if attention else plain_up
                for attention in reversed(a.attention_levels)
            ],
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
            parts = (
                tensor.reshape(3, -1, *rest)
                if new_order
                else tensor.reshape(heads, 3, -1, *rest).transpose(0, 1)
            )
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
ATTENTION = [
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
]


def _convert_unet(
    tensors: Mapping[str, Tensor],
    channel_mult: tuple[int, ...],
    res_blocks: int,
    attention: list[bool],
) -> Converted:
    places = dict(_places(len(channel_mult), res_blocks, attention))
    spatial_transformer = any(".transformer_blocks." in key for key in tensors)
    converted: Converted = {}
    for key, tensor in tensors.items():
        match = re.match(
            r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+|\w+\.\d+|label_emb)\.",
            key,
        )
        place = match and places.get(match[1])
        new = key if place is None else f"{place}.{key[match.end() :]}"  # type: ignore[union-attr]
        for pattern, replacement in INNER if spatial_transformer else INNER + ATTENTION:
            new = re.sub(pattern, replacement, new)
        converted[new] = Origin(key, tensor)
    return converted


def _places(levels: int, res_blocks: int, attention: list[bool]) -> Iterator[tuple[str, str]]:
    """Original module path -> diffusers module path, for every block of the UNet."""
    yield from (
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
    )
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
