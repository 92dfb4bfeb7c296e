"""Diffusion models of diffusers in miniature, inputs for them, and edits of their config files."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

from diffguard_pl import DiffGuard


def dit(**settings) -> DiTTransformer2DModel:
    """Build DiT-XL/2 in miniature: 1000 classes and none, 4 -> 8 channels, 8 x 8 latents."""
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
    """Build an autoencoder of 4 latent channels that halves the resolution."""
    torch.manual_seed(1)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(**blocks | kinds | settings).eval()


def ddim(**settings) -> DDIMScheduler:
    """Build diffusers' DDIM with our timesteps 1, 1 + T // S, ... and alpha-bar[0] at the end."""
    return DDIMScheduler(
        **{"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False} | settings
    )


def edit_json(path: Path, **settings) -> None:
    """Change settings of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def samples(*labels: int, size: int = 8, channels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [n, channels, size, size], timesteps [n] and labels [n]."""
    x = torch.randn(len(labels), channels, size, size, generator=torch.Generator().manual_seed(3))
    return x, torch.linspace(20, 980, len(labels)).long(), torch.tensor(labels)


@torch.no_grad()
def output(network: nn.Module, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """Return what a network predicts."""
    return network(x, t, class_labels=y).sample


def assert_scores_do_not_depend_on_the_batch(
    diffguard: DiffGuard, side: int, rtol: float = 1e-4
) -> None:
    """Compare the score ``l2`` of five images together with that of each alone."""
    images = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(5))
    together = diffguard(images).scores["l2"]
    alone = torch.cat([diffguard(image[None]).scores["l2"] for image in images])
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, rtol=rtol, atol=1e-6)
