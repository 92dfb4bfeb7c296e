"""Cost and effect of the contiguous layout (diffguard_pl/layout.py) on one evaluation of a network.

    python benchmarks/layout.py [--rounds N] [--device cuda]

Networks of 64 px with random weights and offsets (|mean| >> std), as they are loaded and with the
hooks removed, timed in turn. Time: median of the ratios of each round. Error: largest difference
from float64, relative to the largest value.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from diffguard_pl.backbones import LatentDiffusion, PixelDiffusion
from diffguard_pl.checkpoints.architectures import (
    FirstStageArchitecture,
    GuidedDiffusionArchitecture,
    LatentDiffusionArchitecture,
)

GDM = GuidedDiffusionArchitecture(
    image_size=64,
    num_channels=32,
    channel_mult=(1, 1, 2),
    attention_resolutions=(32, 16),
    num_head_channels=32,
)
FIRST_STAGE = FirstStageArchitecture(resolution=64, ch=64, ch_mult=(1, 2, 4), n_embed=256)
LDM = LatentDiffusionArchitecture(
    image_size=16, model_channels=64, channel_mult=(1, 2), first_stage=FIRST_STAGE
)
BATCH = 8


def offset(network: nn.Module) -> None:
    """Give feature maps a mean far above their standard deviation, except at the output."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if "conv_out" in name:
            continue
        if parameter.ndim == 4:
            parameter.data *= 0.2
        elif name.endswith("bias") and "norm" not in name:
            parameter.data += torch.randn(parameter.shape, generator=generator)


def without_hooks(backbone: nn.Module) -> nn.Module:
    """Return a copy that computes in whatever layout comes."""
    plain = copy.deepcopy(backbone)
    for module in plain.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return plain


def seconds(call: Callable[[], Tensor], device: str) -> float:
    """Return how long a call takes: time of the CPU, or of the clock on a GPU."""
    if device == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def line(name: str, backbone: nn.Module, call: Callable, args: argparse.Namespace) -> None:
    """Print a line of the table."""
    plain = without_hooks(backbone)
    expected = call(copy.deepcopy(backbone).double())
    errors = []
    for network in (plain, backbone):
        error = (call(network) - expected).abs().max() / expected.abs().max()
        errors.append(f"{float(error):.1e}")

    ratios = []
    for _ in range(args.rounds):
        before = seconds(lambda: call(plain), args.device)
        ratios.append(seconds(lambda: call(backbone), args.device) / before)
    print(f"| {name} | {errors[0]} | {errors[1]} | {median(ratios):.3f}x |", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixel, latent = PixelDiffusion("random", GDM), LatentDiffusion("random", LDM)
    for backbone in (pixel, latent):
        offset(backbone)
        backbone.to(args.device)

    generator = torch.Generator().manual_seed(1)
    images = (torch.rand(BATCH, 3, 64, 64, generator=generator) * 2 - 1).to(args.device)
    t = torch.linspace(0, 999, BATCH, device=args.device).long()
    y = torch.arange(BATCH, device=args.device)
    z = torch.randn(BATCH, 3, 16, 16, generator=generator).to(args.device)

    print("| | error, any layout | error, contiguous | time |\n|---|---:|---:|---:|")
    line("GDM's UNet", pixel, lambda b: b.eps(images.to(b.dtype), t, y), args)
    line("LDM's UNet", latent, lambda b: b.eps(z.to(b.dtype), t, y), args)
    line("VQ encoder", latent, lambda b: b.encode(images.to(b.dtype)), args)
    line("VQ decoder", latent, lambda b: b.decode(z.to(b.dtype)), args)


if __name__ == "__main__":
    main()
