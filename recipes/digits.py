"""Train the weights of the digits benchmark: ``python recipes/digits.py [PARTS]``.

Trains on the 790 training digits alone, slightly shifted, rotated and scaled. Parts: classifier,
gdm, vq, ldm (which needs vq); all by default. Under an hour on two CPU cores, minutes on a GPU; a
training that was interrupted goes on from its last checkpoint, in runs/digits. Weights are stored
in half precision.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, VQModel
from torch import Tensor, nn
from torch.nn import functional as F
from training import (
    SEED,
    ClassifierTraining,
    LatentTraining,
    PixelTraining,
    VQTraining,
    save_half,
    trained,
)

from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.digits import CLASSES, IMAGE_SIZE, digits

WEIGHTS = Path(__file__).parent.parent / "diffguard_pl" / "weights"
CHECKPOINTS = Path("runs/digits/checkpoints")
LATENT_SIZE = 8


def augment(images: Tensor) -> Tensor:
    """Rotate images by up to 10 degrees, scale by up to 10 % and shift by up to a pixel."""
    count, device = len(images), images.device
    largest = torch.tensor([[0.17], [0.1]], device=device)  # radians, relative scale
    angle, growth = (torch.rand(2, count, device=device) * 2 - 1) * largest
    shift = (torch.rand(count, 2, device=device) * 2 - 1) * 2 / IMAGE_SIZE
    cos, sin = angle.cos() * (1 + growth), angle.sin() * (1 + growth)
    first_row = torch.stack([cos, -sin, shift[:, 0]], dim=1)
    second_row = torch.stack([sin, cos, shift[:, 1]], dim=1)
    affine = torch.stack([first_row, second_row], dim=1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def pixel_unet() -> UNet2DModel:
    """Build a small guided-diffusion UNet: 32 channels, channel_mult 1,2,2."""
    return UNet2DModel(
        sample_size=IMAGE_SIZE,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=32,
        attn_norm_num_groups=32,
    )


def latent_unet() -> UNet2DConditionModel:
    """Build a small latent-diffusion UNet: 64 channels, one-head transformers."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(64, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=1,
    )


def first_stage() -> VQModel:
    """Build an autoencoder from 16 px RGB to latents [3, 8, 8] with 256 codes."""
    return VQModel(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 32),
        sample_size=IMAGE_SIZE,
        num_vq_embeddings=256,
        scaling_factor=1.0,
    )


def train(part: str, module: Any, steps: int, accelerator: str) -> nn.Module:
    """Train one part on the training digits, slightly shifted, rotated and scaled."""
    images, labels = digits("train").images, torch.tensor(digits("train").labels)
    return trained(module, images, labels, CHECKPOINTS / part, steps, accelerator=accelerator)


def train_classifier(accelerator: str) -> None:
    module = ClassifierTraining(
        SmallResNet(len(CLASSES)), 3e-3, weight_decay=0.05, augment=augment, label_smoothing=0.05
    )
    network = train("classifier", module, 1500, accelerator)
    val = digits("val")
    with torch.inference_mode():
        correct = network(val.images * 2 - 1).argmax(1) == torch.tensor(val.labels)
    print(f"validation accuracy {correct.float().mean():.4f}")
    save_half(network, WEIGHTS / "digits_classifier")


def train_gdm(accelerator: str) -> None:
    module = PixelTraining(pixel_unet(), 1e-3, augment=augment)
    network = train("gdm", module, 3000, accelerator)
    network.half().save_pretrained(WEIGHTS / "digits_gdm")


def train_vq(accelerator: str) -> None:
    network = first_stage()
    network.quantize.embedding.weight.data.normal_(std=0.5)
    module = VQTraining(network, 2e-3, weight_decay=0, augment=augment)
    network = train("vq", module, 2000, accelerator)
    images = digits("val").images * 2 - 1
    with torch.inference_mode():
        latents = network.encode(images).latents
        error = (network.decode(latents).sample.clamp(-1, 1) - images).abs().mean()
        used = network.quantize(latents)[2][2].unique().numel()
    print(f"validation error {error:.4f}, codes used {used} of 256, latent std {latents.std():.3f}")
    network.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    network.half().save_pretrained(WEIGHTS / "digits_ldm" / "vqvae")


def train_ldm(accelerator: str) -> None:
    folder = WEIGHTS / "digits_ldm"
    vq = VQModel.from_pretrained(folder / "vqvae").float().eval().requires_grad_(False)
    parts = nn.ModuleDict(
        {"unet": latent_unet(), "class_embedding": nn.Embedding(len(CLASSES) + 1, 64)}
    )
    module = LatentTraining(parts, vq, 1e-3, augment=augment)
    parts = train("ldm", module, 4500, accelerator)
    parts["unet"].half().save_pretrained(folder / "unet")
    save_half(parts["class_embedding"], folder / "class_embedding")


PARTS: dict[str, Callable[[str], None]] = {
    "classifier": train_classifier,
    "gdm": train_gdm,
    "vq": train_vq,
    "ldm": train_ldm,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        default=list(PARTS),
        help=f"what to train: {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ... (default: auto)")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; choose from: {', '.join(PARTS)}")
        pl.seed_everything(SEED)
        PARTS[part](arguments.accelerator)
