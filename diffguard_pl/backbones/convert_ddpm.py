"""Checkpoint layout of Ho et al.'s UNet in PyTorch -> diffusers' ``UNet2DModel``.

The layout is that of DDIM's code (Song et al. 2021), and of DiffNB's, which adds a class embedding.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoints.architectures import DDPMArchitecture
from ..checkpoints.state_dicts import OriginalTensor
from ..diffusion.schedule import alpha_bar_of, cosine_alpha_bar, scaled_linear_alpha_bar
from ..errors import InputError, choose
from .diffusers_import import diffusers_class
from .load import ConvertedWeights, block_types, find_original, load_converted, without_weights

if TYPE_CHECKING:
    from diffusers import UNet2DModel

DDPM_KEYS = ("temb.dense.0.weight", "temb.dense.1.weight")
"""Keys that every UNet in this layout has, and no network of another one."""
BETA_SCHEDULES = ["linear", "quad", "cosine"]
# The setting that decides whether a key fits, by a regular expression of the key.
SETTINGS = {
    r"^class_embedding": "backbone.architecture.num_classes",
    r"^conv_in|^time_embedding": "backbone.architecture.ch",
    r"attentions": "backbone.architecture.attn_resolutions",
    r".": "backbone.architecture.ch_mult and num_res_blocks",
}

NAMES = [
    (r"^temb\.dense\.0\.", "time_embedding.linear_1."),
    (r"^temb\.dense\.1\.", "time_embedding.linear_2."),
    (r"^label_emb\.", "class_embedding."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"^mid\.block_1\.", "mid_block.resnets.0."),
    (r"^mid\.block_2\.", "mid_block.resnets.1."),
    (r"^mid\.attn_1\.", "mid_block.attentions.0."),
    (r"^(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"^(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"^(down|up)\.(\d+)\.(down|up)sample\.", r"\1_blocks.\2.\3samplers.0."),
    (r"\.temb_proj\.", ".time_emb_proj."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
]
"""Original name -> diffusers' name of parts of a key, as regular expressions."""


def load_ddpm(path: Path, architecture: DDPMArchitecture) -> "UNet2DModel":
    """Load the UNet of a checkpoint of DDIM's or DiffNB's code.

    Raises:
        InputError: The file is damaged, or does not fit the architecture.
    """
    unet = build_ddpm(architecture)
    found = find_original(path, DDPM_KEYS, architecture.use_ema)
    weights = convert_ddpm_keys(found.tensors, len(architecture.ch_mult))
    load_converted(unet, weights, path, SETTINGS)
    return unet


def build_ddpm(architecture: DDPMArchitecture) -> "UNet2DModel":
    """Build a UNet of an architecture without weights, on the meta device."""
    UNet2DModel = diffusers_class("UNet2DModel")

    a = architecture
    plain, attention = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")
    down_blocks, up_blocks = block_types(a.attention_levels, plain, attention)

    with without_weights():
        return UNet2DModel(
            sample_size=a.image_size,
            block_out_channels=[a.ch * factor for factor in a.ch_mult],
            layers_per_block=a.num_res_blocks,
            down_block_types=down_blocks,
            up_block_types=up_blocks,
            num_class_embeds=a.num_classes + 1 if a.num_classes else None,
            # one head, of all channels
            attention_head_dim=None,
            # The timestep's sines come before its cosines, in frequencies down to 1 / 10000.
            flip_sin_to_cos=False,
            freq_shift=1,
            # Downsampling pads on the right and at the bottom only.
            downsample_padding=0,
            norm_eps=1e-6,
        )


def convert_ddpm_keys(tensors: Mapping[str, OriginalTensor], levels: int) -> ConvertedWeights:
    """Rename the keys of a UNet from the original layout to diffusers'.

    Args:
        tensors: Tensors by their key in the original UNet.
        levels: Number of levels of the UNet.

    Returns:
        The tensors by their new key; a key that is not in the layout stays as it is.
    """
    converted: ConvertedWeights = {}
    for key, (original_key, tensor) in tensors.items():
        new_key = key
        for pattern, replacement in NAMES:
            new_key = re.sub(pattern, replacement, new_key)

        # The original numbers the levels of the way up from the top, diffusers from the bottom.
        up = re.match(r"up_blocks\.(\d+)\.", new_key)
        if up:
            new_key = f"up_blocks.{levels - 1 - int(up[1])}.{new_key[up.end() :]}"

        # A convolution of kernel size 1 is a linear layer.
        if re.search(r"attentions\.\d+\.to_", new_key) and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        converted[new_key] = OriginalTensor(original_key, tensor)
    return converted


def ddpm_alpha_bar(architecture: DDPMArchitecture) -> Tensor:
    """Return the signal level alpha-bar [T] of an architecture's noise schedule, in float64.

    Raises:
        InputError: The schedule is unknown, or its betas are not between 0 and 1.
    """
    a = architecture
    choose("beta_schedule", a.beta_schedule, BETA_SCHEDULES)
    if not 0 < a.beta_start <= a.beta_end < 1:
        raise InputError(
            f"beta_start={a.beta_start}, beta_end={a.beta_end}: must be betas, 0 < beta_start <= "
            "beta_end < 1; correct them"
        )
    steps = a.num_diffusion_timesteps
    if a.beta_schedule == "cosine":
        return cosine_alpha_bar(steps)
    if a.beta_schedule == "quad":
        return scaled_linear_alpha_bar(a.beta_start, a.beta_end, steps)
    return alpha_bar_of(torch.linspace(a.beta_start, a.beta_end, steps, dtype=torch.float64))
