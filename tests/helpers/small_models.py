"""Diffusion models in miniature."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
)


def dit(**settings) -> DiTTransformer2DModel:
    """DiT-XL/2 in small: 1000 classes and none, 4 -> 8 channels, here on 8 x 8 latents."""
    torch.manual_seed(0)
    small = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "sample_size": 8,
        "out_channels": 8,
    }
    return DiTTransformer2DModel(**small | settings).eval()


def autoencoder(**settings) -> AutoencoderKL:
    torch.manual_seed(1)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(**blocks | kinds | settings).eval()


def ddim(**settings) -> DDIMScheduler:
    """diffusers' DDIM, made to visit the time steps that ours does: 1, 1 + T // S, ..., with alpha-bar[0] at the end."""
    return DDIMScheduler(
        **{"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False} | settings
    )
