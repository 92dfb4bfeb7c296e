"""guided-diffusion's checkpoint layout -> diffusers' ``UNet2DModel``.

guided-diffusion and CompVis latent-diffusion share one layout of the UNet's keys, converted here by
:func:`convert_unet_keys`; only the attention inside differs.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..checkpoints.architectures import (
    GuidedDiffusionArchitecture,
    LatentDiffusionArchitecture,
)
from ..checkpoints.state_dicts import OriginalTensor
from ..diffusion.schedule import (
    cosine_alpha_bar,
    half_cosine_alpha_bar,
    linear_alpha_bar,
    linear_root_alpha_bar,
)
from ..errors import InputError, choose
from .diffusers_import import diffusers_class
from .load import (
    ConvertedWeights,
    block_types,
    contradicts,
    find_original,
    load_converted,
    set_num_heads,
    without_weights,
)

if TYPE_CHECKING:
    from diffusers import UNet2DModel

NOISE_SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "linear": linear_alpha_bar,
    "cosine": cosine_alpha_bar,
    "ldm_linear": linear_root_alpha_bar,
    "cos_linear": half_cosine_alpha_bar,
}
"""Functions of the number of timesteps, by the name that guided-diffusion gives a schedule."""
UNET_KEYS = ("time_embed.0.weight", "input_blocks.0.0.weight")
"""Keys that every UNet in this layout has."""
SharedLayout = GuidedDiffusionArchitecture | LatentDiffusionArchitecture
"""Architectures whose UNets have this layout of keys."""
SETTINGS = {
    r"^class_embedding": "backbone.architecture.class_cond, num_classes and null_class",
    r"^conv_out|^conv_norm_out": "backbone.architecture.learn_sigma",
    r"^conv_in|^time_embedding": "backbone.architecture.num_channels",
    r"time_emb_proj": "backbone.architecture.use_scale_shift_norm",
    r"attentions": "backbone.architecture.attention_resolutions and num_head_channels",
    r"samplers": "backbone.architecture.resblock_updown and num_res_blocks",
    r".": "backbone.architecture.channel_mult and num_res_blocks",
}
"""The setting that decides whether a key of the UNet fits, by a regular expression of the key."""


def load_guided_diffusion(path: Path, architecture: GuidedDiffusionArchitecture) -> "UNet2DModel":
    """Load the UNet of a guided-diffusion checkpoint.

    Raises:
        InputError: The file is damaged, or does not fit or contradicts the architecture.
    """
    unet = build_guided_diffusion(architecture)
    found = find_original(path, UNET_KEYS, architecture.use_ema)
    weights = convert_unet_keys(found.tensors, architecture)
    weights = split_qkv(weights, unet, architecture.use_new_attention_order)
    load_converted(unet, weights, path, SETTINGS)

    # guided-diffusion's files have no noise schedule, but those of other programs may
    a = architecture
    choose("noise_schedule", a.noise_schedule, list(NOISE_SCHEDULES))
    alpha_bar = found.nearest("alphas_cumprod")
    expected = NOISE_SCHEDULES[a.noise_schedule](a.diffusion_steps)
    if alpha_bar is not None and contradicts(alpha_bar, expected):
        raise InputError(
            f"checkpoint {path}: its alphas_cumprod is not that of the {a.noise_schedule} schedule "
            f"with {a.diffusion_steps} steps; check the settings "
            "backbone.architecture.noise_schedule and diffusion_steps"
        )
    return unet


def build_guided_diffusion(architecture: GuidedDiffusionArchitecture) -> "UNet2DModel":
    """Build a UNet of an architecture without weights, on the meta device."""
    UNet2DModel = diffusers_class("UNet2DModel")

    a = architecture
    resample = "resnet" if a.resblock_updown else "conv"
    plain = "DownBlock2D", "UpBlock2D"
    if a.resblock_updown:
        plain = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
    attention = "AttnDownBlock2D", "AttnUpBlock2D"
    down_blocks, up_blocks = block_types(a.attention_levels, plain, attention)

    with without_weights():
        unet = UNet2DModel(
            sample_size=a.image_size,
            out_channels=6 if a.learn_sigma else 3,
            block_out_channels=[a.num_channels * factor for factor in a.channel_mult],
            layers_per_block=a.num_res_blocks,
            down_block_types=down_blocks,
            up_block_types=up_blocks,
            downsample_type=resample,
            upsample_type=resample,
            resnet_time_scale_shift="scale_shift" if a.use_scale_shift_norm else "default",
            attention_head_dim=a.num_head_channels if a.num_head_channels > 0 else 1,
            attn_norm_num_groups=32,
            num_class_embeds=a.num_classes + a.null_class if a.class_cond else None,
        )
    if a.num_head_channels <= 0:
        set_num_heads(unet, a.num_heads)
    return unet


def split_qkv(weights: ConvertedWeights, unet: nn.Module, new_order: bool) -> ConvertedWeights:
    """Split the one convolution that holds q, k and v of an attention into three linear layers.

    The original layout of the output channels is [heads, 3, channels per head], and
    [3, heads, channels per head] with ``use_new_attention_order``.
    """
    split: ConvertedWeights = {}
    for key, (original_key, tensor) in weights.items():
        module_name, _, kind = key.rpartition(".")
        is_qkv = module_name.endswith(".qkv")
        is_projection = module_name.endswith(".to_out.0")

        # A 1-d convolution of kernel size 1 is a linear layer.
        if (is_qkv or is_projection) and tensor.ndim == 3:
            tensor = tensor.squeeze(-1)
        if not is_qkv:
            split[key] = OriginalTensor(original_key, tensor)
            continue

        attention = module_name.removesuffix(".qkv")
        heads = _num_heads(unet, attention)
        if len(tensor) % (3 * heads):
            # another architecture; load_converted reports the shape
            heads = 1
        rest = tensor.shape[1:]
        if new_order:
            q_k_v = tensor.reshape(3, -1, *rest)
        else:
            q_k_v = tensor.reshape(heads, 3, -1, *rest).transpose(0, 1).reshape(3, -1, *rest)
        for letter, part in zip("qkv", q_k_v, strict=True):
            new_key = f"{attention}.to_{letter}.{kind}"
            split[new_key] = OriginalTensor(original_key, part.contiguous())
    return split


def _num_heads(unet: nn.Module, name: str) -> int:
    """Return the number of heads of an attention; 1 if the UNet has no module of that name."""
    try:
        return getattr(unet.get_submodule(name), "heads", 1)
    except AttributeError:
        return 1


# ---- keys of the UNet, for guided-diffusion and latent-diffusion

INSIDE_BLOCKS = [
    (r"\.in_layers\.0\.", ".norm1."),
    (r"\.in_layers\.2\.", ".conv1."),
    (r"\.emb_layers\.1\.", ".time_emb_proj."),
    (r"\.out_layers\.0\.", ".norm2."),
    (r"\.out_layers\.3\.", ".conv2."),
    (r"\.skip_connection\.", ".conv_shortcut."),
    (r"(samplers\.0)\.(op|conv)\.", r"\1.conv."),
]
"""Original name -> diffusers' name of the layers inside a block, as regular expressions."""
INSIDE_ATTENTION = [
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
]
"""As ``INSIDE_BLOCKS``, for guided-diffusion's attention; a spatial transformer keeps its names."""


def convert_unet_keys(
    tensors: Mapping[str, OriginalTensor], architecture: SharedLayout
) -> ConvertedWeights:
    """Rename the keys of a UNet from the original layout to diffusers'.

    Args:
        tensors: Tensors by their key in the original UNet.
        architecture: Architecture of the UNet.

    Returns:
        The tensors by their new key; a key that the architecture does not have stays as it is.
    """
    new_names = unet_module_names(architecture)
    rules = list(INSIDE_BLOCKS)
    if not any(".transformer_blocks." in key for key in tensors):
        rules += INSIDE_ATTENTION

    # the part of a key that names a module in unet_module_names
    module = re.compile(
        r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+|\w+\.\d+|label_emb)\."
    )
    converted: ConvertedWeights = {}
    for key, tensor in tensors.items():
        new_key = key
        match = module.match(key)
        if match and match[1] in new_names:
            new_key = f"{new_names[match[1]]}.{key[match.end() :]}"
        for pattern, replacement in rules:
            new_key = re.sub(pattern, replacement, new_key)
        converted[new_key] = tensor
    return converted


def unet_module_names(architecture: SharedLayout) -> dict[str, str]:
    """Return the diffusers name of each of the UNet's blocks and outer layers, by original name."""
    levels, res_blocks = len(architecture.channel_mult), architecture.num_res_blocks
    attention = architecture.attention_levels
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
        "input_blocks.0.0": "conv_in",
    }

    # Down: residual blocks with attention, then a downsampler at all levels but the last. The
    # original numbers all of them in one sequence k, diffusers level by level.
    k = 1
    for level in range(levels):
        for j in range(res_blocks):
            names[f"input_blocks.{k}.0"] = f"down_blocks.{level}.resnets.{j}"
            if attention[level]:
                names[f"input_blocks.{k}.1"] = f"down_blocks.{level}.attentions.{j}"
            k += 1
        if level < levels - 1:
            names[f"input_blocks.{k}.0"] = f"down_blocks.{level}.downsamplers.0"
            k += 1

    names["middle_block.0"] = "mid_block.resnets.0"
    names["middle_block.1"] = "mid_block.attentions.0"
    names["middle_block.2"] = "mid_block.resnets.1"

    # Up: one more residual block per level; the upsampler is part of the last block of a level.
    k = 0
    for block, level in enumerate(reversed(range(levels))):
        for j in range(res_blocks + 1):
            names[f"output_blocks.{k}.0"] = f"up_blocks.{block}.resnets.{j}"
            if attention[level]:
                names[f"output_blocks.{k}.1"] = f"up_blocks.{block}.attentions.{j}"
            if level > 0 and j == res_blocks:
                place = 2 if attention[level] else 1
                names[f"output_blocks.{k}.{place}"] = f"up_blocks.{block}.upsamplers.0"
            k += 1

    names["out.0"] = "conv_norm_out"
    names["out.2"] = "conv_out"
    return names
