"""The published models at their real size, with random weights: files in the original layouts, converted, loaded and run.

Shows that the conversion copes with 2 GB files, what a converted copy saves, and how long one network row takes on this machine.
``python benchmarks/full_size.py`` prints a table; needs about 8 GB of disk (in $TMPDIR) and of memory, and no network.
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
from diffguard_pl.backbones.convert_guided_diffusion import _places
from diffguard_pl.backbones.save_converted import save_converted
from diffguard_pl.checkpoints.converted import converted_or_original

ARCHITECTURE: Any = {
    PixelDiffusion: GuidedDiffusionArchitecture(),
    LatentDiffusion: LatentDiffusionArchitecture(),
}
GDM_PARAMETERS = 552_814_086
"""Of 256x256_diffusion_uncond.pt."""


def main() -> None:
    warnings.filterwarnings("ignore", ".*random weights.*")
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        columns = [measure(LatentDiffusion, latent_file, Path(folder) / "ldm.ckpt")]
        columns += [measure(PixelDiffusion, pixel_file, Path(folder) / "gdm.pt")]
    print(
        f"| {torch.get_num_threads()} threads, torch {torch.__version__} | LDM (cin256-v2) | GDM (256x256_diffusion_uncond) |"
    )
    print("|---|---:|---:|")
    for what in columns[0]:
        print(f"| {what} | {columns[0][what]} | {columns[1][what]} |")


def measure(kind: Any, write: Callable, path: Path) -> dict[str, str]:
    """What it takes to make, save, load, convert and run a model: a column of the table."""
    seconds: dict[str, float] = {}

    def timed(what: str, function: Callable, *args: Any) -> Any:
        print(f"{path.name}: {what} ...", file=sys.stderr)
        start = time.perf_counter()
        result = function(*args)
        seconds[what] = time.perf_counter() - start
        return result

    random = timed("make random weights", kind, "random")
    parameters = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in random.named_children()
    }
    assert kind is LatentDiffusion or parameters == {"unet": GDM_PARAMETERS}, parameters
    timed("save, original layout", write, random, path)
    timed("load the original", kind, str(path))
    copy = timed("convert", save_converted, path)
    backbone = timed("load the converted copy", kind, str(path))
    assert converted_or_original(path, ARCHITECTURE[kind]) == copy
    loaded = backbone.state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in random.state_dict().items())
    del random, loaded
    images = torch.linspace(-1, 1, 3 * 256 * 256).view(1, 3, 256, 256)
    x = timed("encode", backbone.encode, images)
    eps = timed("one network row", backbone.eps, x, torch.tensor([500]), torch.tensor([0]))
    decoded = timed("decode", backbone.decode, x)
    assert eps.shape == x.shape
    assert eps.isfinite().all()
    assert eps.std() > 0
    assert decoded.shape == images.shape
    size = path.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (
        {
            "parameters": ", ".join(f"{name} {count:,}" for name, count in parameters.items()),
            "file": f"{size / 1e9:.2f} GB",
        }
        | {f"{what}, s": f"{value:.2f}" for what, value in seconds.items()}
        | {"peak resident memory so far": f"{peak / 1e9:.1f} GB"}
    )


# ------------------------------------------------------------------------------------------------------- original layouts


def pixel_file(backbone: PixelDiffusion, path: Path) -> None:
    """Save as guided-diffusion does."""
    a = ARCHITECTURE[PixelDiffusion]
    torch.save(
        original_unet(backbone.unet, len(a.channel_mult), a.num_res_blocks, a.attention_levels),
        path,
    )


def latent_file(backbone: LatentDiffusion, path: Path) -> None:
    """Save as CompVis' Lightning module does."""
    a = ARCHITECTURE[LatentDiffusion]
    unet = original_unet(backbone.unet, len(a.channel_mult), a.num_res_blocks, a.attention_levels)
    state = {f"model.diffusion_model.{key}": tensor for key, tensor in unet.items()}
    state |= {
        f"first_stage_model.{key}": t
        for key, t in original_first_stage(backbone.first_stage, len(a.first_stage.ch_mult)).items()
    }
    state["cond_stage_model.embedding.weight"] = backbone.embedding.weight
    torch.save(
        {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "1.4.2", "state_dict": state},
        path,
    )


UNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
}


def original_unet(
    unet: nn.Module, levels: int, res_blocks: int, attention: list[bool]
) -> dict[str, Tensor]:
    """The weights of a diffusers UNet under the keys of guided-diffusion and latent-diffusion: what convert.py undoes."""
    places = {new: old for old, new in _places(levels, res_blocks, attention)}
    state: dict[str, Tensor] = {}
    for key, tensor in unet.state_dict().items():
        module = next(new for new in places if key.startswith(f"{new}."))
        old, inside = places[module], key.removeprefix(f"{module}.")
        name, _, kind = inside.rpartition(".")
        if name in ("to_q", "to_k", "to_v"):
            heads = unet.get_submodule(module).heads
            parts = [
                unet.get_submodule(f"{module}.{n}").state_dict()[kind]
                for n in ("to_q", "to_k", "to_v")
            ]
            qkv = torch.stack(
                [part.view(heads, -1, *part.shape[1:]) for part in parts], dim=1
            ).flatten(0, 2)
            state[f"{old}.qkv.{kind}"] = qkv[..., None] if kind == "weight" else qkv
        elif name == "conv":
            state[f"{old}.{'op' if module.startswith('down') else 'conv'}.{kind}"] = tensor
        elif name == "to_out.0":
            state[f"{old}.proj_out.{kind}"] = tensor[..., None] if kind == "weight" else tensor
        else:
            state[".".join(filter(None, (old, UNET.get(name, name), kind)))] = tensor
    return state


def original_first_stage(first_stage: nn.Module, levels: int) -> dict[str, Tensor]:
    """The weights of diffusers' VQModel under CompVis' keys."""
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
