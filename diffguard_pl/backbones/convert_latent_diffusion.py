"""TODO."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel, VQModel
from torch import Tensor, nn

from ..checkpoints.architectures import FirstStageArchitecture, LatentDiffusionArchitecture
from ..checkpoints.tensors import load_tensors
from .convert_guided_diffusion import _convert_unet
from .load import Origin, fit

# ----------------------------------------------------------------------------------------------------- latent diffusion


def latent_diffusion(
    path: Path, architecture: LatentDiffusionArchitecture
) -> tuple[UNet2DConditionModel, nn.Embedding, VQModel]:
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
    weights = _convert_unet(
        _under(tensors, "model.diffusion_model."),
        a.channel_mult,
        a.num_res_blocks,
        a.attention_levels,
    )
    fit(
        unet,
        {key: Origin(f"model.diffusion_model.{k}", v) for key, (k, v) in weights.items()},
        path,
        settings,
    )
    classes = {
        key: Origin(f"cond_stage_model.embedding.{key}", v)
        for key, v in _under(tensors, "cond_stage_model.embedding.").items()
    }
    fit(embedding, classes, path, {".": "backbone.architecture.n_classes and context_dim"})
    return unet, embedding, _first_stage(tensors, a.first_stage, a.scale_factor, path)


def latent_diffusion_modules(
    architecture: LatentDiffusionArchitecture,
) -> tuple[UNet2DConditionModel, nn.Embedding]:
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
            down_block_types=[
                "CrossAttnDownBlock2D" if attention else "DownBlock2D"
                for attention in a.attention_levels
            ],
            up_block_types=[
                "CrossAttnUpBlock2D" if attention else "UpBlock2D"
                for attention in reversed(a.attention_levels)
            ],
            # diffusers calls it a dimension; it is the number of heads
            attention_head_dim=[
                c // a.num_head_channels if a.num_head_channels > 0 else a.num_heads
                for c in channels
            ],
            transformer_layers_per_block=a.transformer_depth,
            cross_attention_dim=a.context_dim,
        )
        embedding = nn.Embedding(a.n_classes, a.context_dim)
    return unet, embedding


def _first_stage(
    tensors: dict[str, Tensor],
    architecture: FirstStageArchitecture,
    scale_factor: float,
    path: Path,
) -> VQModel:
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
            down_block_types=[
                "AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D"
                for attention in a.attention_levels
            ],
            up_block_types=[
                "AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D"
                for attention in reversed(a.attention_levels)
            ],
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
        (
            r"\.up\.(\d+)\.upsample\.",
            lambda m: f".up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.",
        ),
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
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
