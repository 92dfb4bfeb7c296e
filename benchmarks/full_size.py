"""The published models at full size with random weights: saved, converted, loaded and run.

Files are written in the original layouts. Shows that the conversion handles 2 GB files, what a
converted copy saves, and how long one evaluation of the network takes on this machine.
``python benchmarks/full_size.py`` prints a table; it needs about 8 GB of disk (in $TMPDIR) and of
memory, and no network.
"""

import re
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffguard_pl.backbones import (
    GuidedDiffusionArchitecture,
    LatentDiffusion,
    LatentDiffusionArchitecture,
    PixelDiffusion,
)
from diffguard_pl.backbones.convert_guided_diffusion import unet_module_names
from diffguard_pl.backbones.save_converted import save_converted
from diffguard_pl.checkpoints.architectures import Architecture
from diffguard_pl.checkpoints.converted import converted_or_original

GDM = GuidedDiffusionArchitecture()
LDM = LatentDiffusionArchitecture()
GDM_PARAMETERS = 552_814_086
"""Number of parameters of 256x256_diffusion_uncond.pt."""


def main() -> None:
    warnings.filterwarnings("ignore", ".*random weights.*")
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        ldm = measure(LatentDiffusion, LDM, save_latent, Path(folder) / "ldm.ckpt")
        gdm = measure(PixelDiffusion, GDM, save_pixel, Path(folder) / "gdm.pt")
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"| {threads} | LDM (cin256-v2) | GDM (256x256_diffusion_uncond) |")
    print("|---|---:|---:|")
    for quantity, value in ldm.items():
        print(f"| {quantity} | {value} | {gdm[quantity]} |")


def measure(kind: Any, architecture: Architecture, save: Callable, path: Path) -> dict[str, str]:
    """Create, save, load, convert and run a model; return one column of the table."""
    seconds: dict[str, float] = {}

    def timed(step: str, function: Callable, *args: Any) -> Any:
        print(f"{path.name}: {step} ...", file=sys.stderr)
        start = time.perf_counter()
        result = function(*args)
        seconds[step] = time.perf_counter() - start
        return result

    random = timed("make random weights", kind, "random")
    parameters = {}
    for name, module in random.named_children():
        parameters[name] = sum(parameter.numel() for parameter in module.parameters())
    assert kind is LatentDiffusion or parameters == {"unet": GDM_PARAMETERS}, parameters

    # The copy is found by the file's name, and holds the same weights.
    timed("save, original layout", save, random, path)
    timed("load the original", kind, str(path))
    copy = timed("convert", save_converted, path)
    backbone = timed("load the converted copy", kind, str(path))
    assert converted_or_original(path, architecture) == copy
    loaded = backbone.state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in random.state_dict().items())
    del random, loaded

    images = torch.linspace(-1, 1, 3 * 256 * 256).view(1, 3, 256, 256)
    x = timed("encode", backbone.encode, images)
    eps = timed("one NFE", backbone.eps, x, torch.tensor([500]), torch.tensor([0]))
    decoded = timed("decode", backbone.decode, x)
    assert eps.shape == x.shape
    assert eps.isfinite().all()
    assert eps.std() > 0
    assert decoded.shape == images.shape

    counts = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
    column = {"parameters": counts, "file": f"{path.stat().st_size / 1e9:.2f} GB"}
    for step, value in seconds.items():
        column[f"{step}, s"] = f"{value:.2f}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    column["peak resident memory so far"] = f"{peak / 1e9:.1f} GB"
    return column


# ---- original layouts


def save_pixel(backbone: PixelDiffusion, path: Path) -> None:
    """Save a model as guided-diffusion does."""
    torch.save(original_unet(backbone.unet, GDM), path)


def save_latent(backbone: LatentDiffusion, path: Path) -> None:
    """Save a model as CompVis' Lightning module does."""
    state = {}
    for key, tensor in original_unet(backbone.unet, LDM).items():
        state[f"model.diffusion_model.{key}"] = tensor
    levels = len(LDM.first_stage.ch_mult)
    for key, tensor in original_first_stage(backbone.first_stage, levels).items():
        state[f"first_stage_model.{key}"] = tensor
    state["cond_stage_model.embedding.weight"] = backbone.embedding.weight
    lightning = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "1.4.2"}
    torch.save(lightning | {"state_dict": state}, path)


LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
}
"""diffusers' name -> original name of the layers inside a block."""


def original_unet(unet: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    """Return the weights of a diffusers UNet under the original keys: the inverse conversion."""
    original_names = {new: old for old, new in unet_module_names(architecture).items()}
    state: dict[str, Tensor] = {}
    for key, tensor in unet.state_dict().items():
        block = next(name for name in original_names if key.startswith(f"{name}."))
        original = original_names[block]
        layer, _, kind = key.removeprefix(f"{block}.").rpartition(".")
        if layer in ("to_q", "to_k", "to_v"):
            # q, k and v of each head side by side, in one 1-d convolution
            attention = unet.get_submodule(block)
            parts = []
            for name in ("to_q", "to_k", "to_v"):
                part = attention.get_submodule(name).state_dict()[kind]
                parts.append(part.view(attention.heads, -1, *part.shape[1:]))
            qkv = torch.stack(parts, dim=1).flatten(0, 2)
            state[f"{original}.qkv.{kind}"] = qkv[..., None] if kind == "weight" else qkv
        elif layer == "conv":
            name = "op" if block.startswith("down") else "conv"
            state[f"{original}.{name}.{kind}"] = tensor
        elif layer == "to_out.0":
            tensor = tensor[..., None] if kind == "weight" else tensor
            state[f"{original}.proj_out.{kind}"] = tensor
        else:
            parts = [original, LAYERS.get(layer, layer), kind]
            state[".".join(filter(None, parts))] = tensor
    return state


def original_first_stage(first_stage: nn.Module, levels: int) -> dict[str, Tensor]:
    """Return the weights of diffusers' VQModel under CompVis' keys."""
    rules: list[tuple[str, Any]] = [
        (r"down_blocks\.", "down."),
        (r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}"),
        (r"(down|up)samplers\.0", r"\1sample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"resnets", "block"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
        (r"(attn\S*)\.group_norm", r"\1.norm"),
        (r"(attn\S*)\.to_([qkv])", r"\1.\2"),
        (r"(attn\S*)\.to_out\.0", r"\1.proj_out"),
    ]
    state = {}
    for key, tensor in first_stage.state_dict().items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        state[key] = tensor[..., None, None] if ".attn" in key and tensor.ndim == 2 else tensor
    return state


if __name__ == "__main__":
    main()
