"""Checkpoints in the layouts of the original code."""

from pathlib import Path

import torch

from diffguard_pl.backbones import Backbone, GuidedDiffusionArchitecture
from helpers.golden import REFERENCE

GDM_FILE = REFERENCE / "gdm_unet.pt"
LDM_FILE = REFERENCE / "ldm_model.ckpt"


def saved(state: object, path: Path) -> str:
    """Save an object with ``torch.save``; return the path as a setting."""
    torch.save(state, path)
    return str(path)


@torch.no_grad()
def some_eps(backbone: Backbone) -> torch.Tensor:
    """Predict the noise of two fixed samples, for the golden files' architectures."""
    shape = (2, 3, 32, 32) if backbone.is_pixel_space else (2, 3, 16, 16)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return backbone.eps(x, torch.tensor([10, 900]), torch.tensor([1, 2]))


def original_state(a: GuidedDiffusionArchitecture) -> dict[str, torch.Tensor]:
    """Return random weights with guided-diffusion's keys and shapes, as in its UNet's code."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator) * 0.05
        if name != "label_emb":
            state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.05

    def norm(name: str, channels: int) -> None:
        put(name, channels)

    emb = 4 * a.num_channels

    def res(name: str, c_in: int, c_out: int) -> None:
        norm(f"{name}.in_layers.0", c_in)
        put(f"{name}.in_layers.2", c_out, c_in, 3, 3)
        put(f"{name}.emb_layers.1", c_out * (2 if a.use_scale_shift_norm else 1), emb)
        norm(f"{name}.out_layers.0", c_out)
        put(f"{name}.out_layers.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            put(f"{name}.skip_connection", c_out, c_in, 1, 1)

    def attention(name: str, c: int) -> None:
        norm(f"{name}.norm", c)
        put(f"{name}.qkv", 3 * c, c, 1)
        put(f"{name}.proj_out", c, c, 1)

    put("time_embed.0", emb, a.num_channels)
    put("time_embed.2", emb, emb)
    if a.class_cond:
        put("label_emb", a.num_classes, emb)
    put("input_blocks.0.0", a.num_channels, 3, 3, 3)
    skips, c, k, size = [a.num_channels], a.num_channels, 1, a.image_size
    for level, m in enumerate(a.channel_mult):
        for _ in range(a.num_res_blocks):
            res(f"input_blocks.{k}.0", c, c := m * a.num_channels)
            if size in a.attention_resolutions:
                attention(f"input_blocks.{k}.1", c)
            skips.append(c)
            k += 1
        if level < len(a.channel_mult) - 1:
            res(f"input_blocks.{k}.0", c, c) if a.resblock_updown else put(
                f"input_blocks.{k}.0.op", c, c, 3, 3
            )
            skips.append(c)
            k, size = k + 1, size // 2
    res("middle_block.0", c, c)
    attention("middle_block.1", c)
    res("middle_block.2", c, c)
    k = 0
    for level, m in reversed(list(enumerate(a.channel_mult))):
        for j in range(a.num_res_blocks + 1):
            res(f"output_blocks.{k}.0", c + skips.pop(), m * a.num_channels)
            c, i = m * a.num_channels, 1
            if size in a.attention_resolutions:
                attention(f"output_blocks.{k}.{i}", c)
                i += 1
            if level and j == a.num_res_blocks:
                res(f"output_blocks.{k}.{i}", c, c) if a.resblock_updown else put(
                    f"output_blocks.{k}.{i}.conv", c, c, 3, 3
                )
                size *= 2
            k += 1
    norm("out.0", c)
    put("out.2", 6 if a.learn_sigma else 3, c, 3, 3)
    return state
