"""Train the weights of the Fashion-MNIST benchmark: ``python recipes/fashion.py [PARTS]``.

Trains on the training images of the eight known classes of a split. Parts: classifier, gdm, vq,
ldm (which needs vq); all by default. Minutes on a GPU, two hours a split on two CPU cores; a
training that was interrupted goes on from its last checkpoint. Weights are stored in half
precision: those of the first split in the package, those of the others in ``--out``.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, VQModel
from torch import Tensor, nn
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
from diffguard_pl.datamodules.fashion import CLASS_SPLITS, IMAGE_SIZE, FashionDataModule

WEIGHTS = Path(__file__).parent.parent / "diffguard_pl" / "weights"
LATENT_SIZE = 8
CLASSES = 8


@dataclass
class Job:
    """One split to train on: its images, where weights and checkpoints go, and on what device."""

    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    weights: Path
    checkpoints: Path
    trainer: dict[str, Any]

    def train(self, part: str, module: Any, steps: int, batch_size: int = 64) -> nn.Module:
        """Train one part on the split's training images."""
        folder = self.checkpoints / part
        images, labels = self.train_images, self.train_labels
        return trained(module, images, labels, folder, steps, batch_size, **self.trainer)


def flip_and_shift(images: Tensor) -> Tensor:
    """Mirror half of the images, and shift the batch by up to two pixels."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    images = torch.where(mirrored, images.flip(-1), images)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    x, y = torch.randint(0, 5, (2,)).tolist()
    return padded[..., y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]


def pixel_unet() -> UNet2DModel:
    """Build a small guided-diffusion UNet: 16 channels, channel_mult 1,2,4,4."""
    return UNet2DModel(
        sample_size=IMAGE_SIZE,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        down_block_types=(*["ResnetDownsampleBlock2D"] * 2, *["AttnDownBlock2D"] * 2),
        up_block_types=(*["AttnUpBlock2D"] * 2, *["ResnetUpsampleBlock2D"] * 2),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=32,
        attn_norm_num_groups=16,
        norm_num_groups=16,
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
    """Build an autoencoder from 32 px RGB to latents [3, 8, 8] with 512 codes."""
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 32),
        sample_size=IMAGE_SIZE,
        num_vq_embeddings=512,
        scaling_factor=1.0,
    )


def train_classifier(job: Job) -> None:
    module = ClassifierTraining(
        SmallResNet(CLASSES), 3e-3, weight_decay=0.05, augment=flip_and_shift
    )
    network = job.train("classifier", module, 4000, batch_size=128)
    with torch.inference_mode():
        correct = network(job.val_images * 2 - 1).argmax(1) == job.val_labels
    print(f"validation accuracy {correct.float().mean():.4f}")
    save_half(network, job.weights / "fashion_classifier")


def train_gdm(job: Job) -> None:
    network = job.train("gdm", PixelTraining(pixel_unet(), 1e-3), 6000)
    network.half().save_pretrained(job.weights / "fashion_gdm")


def train_vq(job: Job) -> None:
    network = first_stage()
    network.quantize.embedding.weight.data.normal_(std=0.5)
    network = job.train("vq", VQTraining(network, 2e-3, weight_decay=0), 2500)
    images = job.val_images * 2 - 1
    with torch.inference_mode():
        latents = network.encode(images).latents
        error = (network.decode(latents).sample.clamp(-1, 1) - images).abs().mean()
        used = network.quantize(latents)[2][2].unique().numel()
    print(f"validation error {error:.4f}, codes used {used} of 512, latent std {latents.std():.3f}")
    network.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    network.half().save_pretrained(job.weights / "fashion_ldm" / "vqvae")


def train_ldm(job: Job) -> None:
    folder = job.weights / "fashion_ldm"
    vq = VQModel.from_pretrained(folder / "vqvae").float().eval().requires_grad_(False)
    parts = nn.ModuleDict({"unet": latent_unet(), "class_embedding": nn.Embedding(CLASSES + 1, 64)})
    parts = job.train("ldm", LatentTraining(parts, vq, 1e-3), 6000)
    parts["unet"].half().save_pretrained(folder / "unet")
    save_half(parts["class_embedding"], folder / "class_embedding")


PARTS: dict[str, Callable[[Job], None]] = {
    "classifier": train_classifier,
    "gdm": train_gdm,
    "vq": train_vq,
    "ldm": train_ldm,
}


def job_of(class_split: int, root: str | None, out: Path, accelerator: str, precision: str) -> Job:
    """Return the images and folders of one split."""
    data = FashionDataModule(class_split=class_split, root=root)
    train, val = data.train_source(), data.val_images()
    return Job(
        train.images,
        torch.tensor(train.labels),
        val.images,
        torch.tensor(val.labels),
        WEIGHTS if class_split == 1 else out / f"split_{class_split}",
        out / f"split_{class_split}" / "checkpoints",
        {"accelerator": accelerator, "precision": precision},
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        default=list(PARTS),
        help=f"what to train: {', '.join(PARTS)} (default: all)",
    )
    numbers = range(1, len(CLASS_SPLITS) + 1)
    parser.add_argument(
        "--class-split",
        type=int,
        default=1,
        choices=numbers,
        help="the split to train on (default: 1)",
    )
    parser.add_argument("--root", help="folder of Fashion-MNIST's IDX files (default: found)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/fashion"),
        help="folder of checkpoints, and of the other splits' weights (default: runs/fashion)",
    )
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ... (default: auto)")
    parser.add_argument("--precision", default="bf16-mixed", help="(default: bf16-mixed)")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; choose from: {', '.join(PARTS)}")
    settings = vars(arguments)
    parts = settings.pop("parts")
    job = job_of(**settings)
    for part in parts:
        pl.seed_everything(SEED)
        PARTS[part](job)


if __name__ == "__main__":
    main()
