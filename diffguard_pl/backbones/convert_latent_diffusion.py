"""CompVis latent-diffusion's checkpoint layout -> diffusers' condition UNet and VQ autoencoder."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checkpoints.architectures import FirstStageArchitecture, LatentDiffusionArchitecture
from ..checkpoints.state_dicts import OriginalTensor, Weights
from ..diffusion.schedule import latent_alpha_bar
from ..errors import InputError
from .convert_guided_diffusion import convert_unet_keys
from .diffusers_import import diffusers_class
from .load import (
    ConvertedWeights,
    block_types,
    contradicts,
    find_original,
    load_converted,
    without_weights,
)

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel, VQModel

# Prefixes of the keys of the three networks in a checkpoint.
UNET = "model.diffusion_model."
CLASS_EMBEDDING = "cond_stage_model.embedding."
FIRST_STAGE = "first_stage_model."
COMPVIS_KEYS = (
    f"{UNET}time_embed.0.weight",
    f"{CLASS_EMBEDDING}weight",
    f"{FIRST_STAGE}quantize.embedding.weight",
)
"""A key of each of the three networks."""

# The setting that decides whether a key fits, by a regular expression of the key.
UNET_SETTINGS = {
    r"^conv_in|^time_embedding|^conv_out": "backbone.architecture.model_channels",
    r"attn2.to_[kv]": "backbone.architecture.context_dim",
    r"transformer_blocks": "backbone.architecture.attention_resolutions and transformer_depth",
    r"attentions": "backbone.architecture.attention_resolutions",
    r".": "backbone.architecture.channel_mult and num_res_blocks",
}
CLASS_EMBEDDING_SETTINGS = {r".": "backbone.architecture.n_classes and context_dim"}
FIRST_STAGE_SETTINGS = {
    r"^quantize": "backbone.architecture.first_stage.n_embed and embed_dim",
    r"quant_conv": "backbone.architecture.first_stage.z_channels and embed_dim",
    r"(en|de)coder.conv_": "backbone.architecture.first_stage.ch and z_channels",
    r"attentions": "backbone.architecture.first_stage.attn_resolutions",
    r".": "backbone.architecture.first_stage.ch_mult and num_res_blocks",
}


# ---- load


def load_latent_diffusion(
    path: Path, architecture: LatentDiffusionArchitecture
) -> tuple["UNet2DConditionModel", nn.Embedding, "VQModel"]:
    """Load UNet, class embedding and VQ first stage of a CompVis latent-diffusion checkpoint.

    Raises:
        InputError: The file is damaged, or does not fit or contradicts the architecture.
    """
    found = find_original(path, COMPVIS_KEYS, architecture.use_ema)
    tensors = found.tensors
    unet, embedding = build_latent_unet(architecture)

    weights = convert_unet_keys(_with_prefix(tensors, UNET), architecture)
    load_converted(unet, weights, path, UNET_SETTINGS)

    weights = _with_prefix(tensors, CLASS_EMBEDDING)
    load_converted(embedding, weights, path, CLASS_EMBEDDING_SETTINGS)

    first_stage = load_first_stage(
        tensors, architecture.first_stage, architecture.scale_factor, path
    )
    _check_constants(found, architecture, path)
    return unet, embedding, first_stage


def load_first_stage(
    tensors: Mapping[str, OriginalTensor],
    architecture: FirstStageArchitecture,
    scale_factor: float,
    path: Path,
) -> "VQModel":
    """Load the VQ first stage of a CompVis latent-diffusion checkpoint.

    Args:
        tensors: All tensors of the checkpoint, by CompVis' key.
        architecture: Architecture of the first stage.
        scale_factor: Factor on the latents before they are diffused.
        path: File of the checkpoint, for the error message.

    Raises:
        InputError: The tensors do not fit the architecture.
    """
    weights: ConvertedWeights = {}
    for key, (original_key, tensor) in _with_prefix(tensors, FIRST_STAGE).items():
        # the training loss, its logging, and an average that CompVis does not use either
        if key.startswith(("loss.", "colorize", "model_ema.")):
            continue
        new_key = _convert_first_stage_key(key, len(architecture.ch_mult))
        # The original's attention has 1x1 convolutions, diffusers' has linear layers.
        if re.search(r"attentions\.\d+\.to_", new_key) and tensor.ndim == 4:
            tensor = tensor.squeeze(-1).squeeze(-1)
        weights[new_key] = OriginalTensor(original_key, tensor)
    module = build_first_stage(architecture, scale_factor)
    return load_converted(module, weights, path, FIRST_STAGE_SETTINGS)


def _check_constants(found: Weights, architecture: LatentDiffusionArchitecture, path: Path) -> None:
    """Raise an `InputError` if the file's own noise schedule or latent scale is another one."""
    a = architecture
    scale_factor = found.nearest("scale_factor")
    if scale_factor is not None and contradicts(scale_factor, torch.tensor(a.scale_factor)):
        raise InputError(
            f"checkpoint {path}: its scale_factor is {float(scale_factor):.6g}, not "
            f"{a.scale_factor:g}; set backbone.architecture.scale_factor to that"
        )
    alpha_bar = found.nearest("alphas_cumprod")
    expected = latent_alpha_bar(
        a.beta_schedule, a.linear_start, a.linear_end, a.cosine_s, a.timesteps
    )
    if alpha_bar is not None and contradicts(alpha_bar, expected):
        settings = _schedule_settings(alpha_bar) or "another schedule"
        raise InputError(
            f"checkpoint {path}: its alphas_cumprod is that of {settings}, not of beta_schedule "
            f"{a.beta_schedule}, linear_start {a.linear_start:g}, linear_end {a.linear_end:g} and "
            f"timesteps {a.timesteps}; set these in backbone.architecture to those of its training"
        )


def _schedule_settings(alpha_bar: Tensor) -> str | None:
    """Return the settings of a schedule alpha-bar [T] with linear betas or roots of betas."""
    alpha_bar = alpha_bar.double().flatten()
    if len(alpha_bar) < 2:
        return None
    start, end = 1 - alpha_bar[0].item(), 1 - (alpha_bar[-1] / alpha_bar[-2]).item()
    if not 0 < start <= end < 1:
        return None
    for name in ("linear", "sqrt_linear"):
        if not contradicts(alpha_bar, latent_alpha_bar(name, start, end, 0, len(alpha_bar))):
            return (
                f"beta_schedule {name}, linear_start {start:.4g}, linear_end {end:.4g} and "
                f"timesteps {len(alpha_bar)}"
            )
    return None


# ---- build


def build_latent_unet(
    architecture: LatentDiffusionArchitecture,
) -> tuple["UNet2DConditionModel", nn.Embedding]:
    """Build UNet and class embedding of an architecture without weights, on the meta device."""
    UNet2DConditionModel = diffusers_class("UNet2DConditionModel")

    a = architecture
    channels = [a.model_channels * factor for factor in a.channel_mult]
    # diffusers calls the number of heads attention_head_dim
    if a.num_head_channels > 0:
        heads = [c // a.num_head_channels for c in channels]
    else:
        heads = [a.num_heads] * len(channels)
    plain = "DownBlock2D", "UpBlock2D"
    attention = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    down_blocks, up_blocks = block_types(a.attention_levels, plain, attention)

    with without_weights():
        unet = UNet2DConditionModel(
            sample_size=a.image_size,
            in_channels=a.first_stage.embed_dim,
            out_channels=a.first_stage.embed_dim,
            block_out_channels=channels,
            layers_per_block=a.num_res_blocks,
            down_block_types=down_blocks,
            up_block_types=up_blocks,
            attention_head_dim=heads,
            transformer_layers_per_block=a.transformer_depth,
            cross_attention_dim=a.context_dim,
        )
        embedding = nn.Embedding(a.n_classes, a.context_dim)
    return unet, embedding


def build_first_stage(architecture: FirstStageArchitecture, scale_factor: float) -> "VQModel":
    """Build a VQ first stage of an architecture without weights, on the meta device."""
    VQModel = diffusers_class("VQModel")

    a = architecture
    plain = "DownEncoderBlock2D", "UpDecoderBlock2D"
    attention = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    down_blocks, up_blocks = block_types(a.attention_levels, plain, attention)

    with without_weights():
        return VQModel(
            sample_size=a.resolution,
            down_block_types=down_blocks,
            up_block_types=up_blocks,
            block_out_channels=[a.ch * factor for factor in a.ch_mult],
            layers_per_block=a.num_res_blocks,
            latent_channels=a.z_channels,
            vq_embed_dim=a.embed_dim,
            num_vq_embeddings=a.n_embed,
            scaling_factor=scale_factor,
        )


# ---- keys


def _convert_first_stage_key(key: str, levels: int) -> str:
    """Rename a key of the VQ first stage from CompVis' layout to diffusers'."""

    # The decoder's levels are numbered from the image inwards by CompVis, outwards by diffusers.
    def up_block(part: str) -> Callable[[re.Match], str]:
        return lambda match: f".up_blocks.{levels - 1 - int(match[1])}.{part}."

    rules: list[tuple[str, str | Callable[[re.Match], str]]] = [
        (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
        (r"\.down\.(\d+)\.attn\.", r".down_blocks.\1.attentions."),
        (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
        (r"\.up\.(\d+)\.block\.", up_block("resnets")),
        (r"\.up\.(\d+)\.attn\.", up_block("attentions")),
        (r"\.up\.(\d+)\.upsample\.", up_block("upsamplers.0")),
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


def _with_prefix(tensors: Mapping[str, OriginalTensor], prefix: str) -> ConvertedWeights:
    """Return the tensors whose key has a prefix, by their key without it."""
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
