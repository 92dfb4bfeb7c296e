"""Train the weights of the digits benchmark: ``python recipes/digits.py [PARTS]``.

Trains on the 790 training digits alone, slightly shifted, rotated and scaled. Parts: classifier,
gdm, vq, ldm (which needs vq); all by default. Under an hour on two CPU cores, minutes on a GPU.
Weights are stored in half precision.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, VQModel
from pytorch_lightning.callbacks import EMAWeightAveraging
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.digits import CLASSES, IMAGE_SIZE, digits
from diffguard_pl.diffusion.schedule import linear_alpha_bar, scaled_linear_alpha_bar

WEIGHTS = Path(__file__).parent.parent / "diffguard_pl" / "weights"
NO_CLASS = len(CLASSES)
LABEL_DROPOUT = 0.15
LATENT_SIZE = 8


class Training(pl.LightningModule):
    """Minimisation of ``loss(images, labels)`` with AdamW and a cosine learning rate."""

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float = 0.01):
        super().__init__()
        self.network, self.learning_rate, self.weight_decay = network, learning_rate, weight_decay

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = self.loss(augment(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, steps // 20)
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ClassifierTraining(Training):
    """Cross-entropy on images in [-1, 1]."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.network(images * 2 - 1), labels, label_smoothing=0.05)


class PixelTraining(Training):
    """Noise prediction on images in [-1, 1] (Ho et al. 2020, eq. 14)."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        x, t, noise = noisy(images * 2 - 1, linear_alpha_bar())
        return F.mse_loss(self.network(x, t).sample, noise)


class VQTraining(Training):
    """Reconstruction error of the autoencoder, L1 + L2, and its commitment loss."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        images = images * 2 - 1
        output = self.network(images)
        reconstruction = F.l1_loss(output.sample, images) + F.mse_loss(output.sample, images)
        return reconstruction + output.commit_loss.mean()


class LatentTraining(Training):
    """Noise prediction on latents, labels dropped at random (Ho & Salimans 2022, alg. 1)."""

    def __init__(self, network: nn.ModuleDict, first_stage: VQModel, learning_rate: float):
        super().__init__(network, learning_rate)
        self.first_stage = [first_stage]  # in a list: frozen, not a submodule to train

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        first_stage = self.first_stage[0].to(images.device)
        with torch.no_grad():
            latents = first_stage.encode(images * 2 - 1).latents * first_stage.config.scaling_factor
        dropped = torch.rand(len(labels), device=labels.device) < LABEL_DROPOUT
        context = self.network["class_embedding"](labels.masked_fill(dropped, NO_CLASS))[:, None]
        x, t, noise = noisy(latents, scaled_linear_alpha_bar())
        return F.mse_loss(self.network["unet"](x, t, context).sample, noise)


def noisy(x: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [N, C, H, W] at random timesteps [N], the timesteps, and the noise in it."""
    t = torch.randint(len(alpha_bar), (len(x),), device=x.device)
    level = alpha_bar.to(x.device)[t].to(x.dtype).view(-1, 1, 1, 1)
    noise = torch.randn_like(x)
    return level.sqrt() * x + (1 - level).sqrt() * noise, t, noise


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


def trained(module: Training, steps: int, batch_size: int, accelerator: str) -> nn.Module:
    """Train for ``steps`` and return the averaged network, on the CPU."""
    train = digits("train")
    data = TensorDataset(train.images, torch.tensor(train.labels))
    sampler = RandomSampler(data, replacement=True, num_samples=steps * batch_size)
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_epochs=1,
        gradient_clip_val=1.0,
        callbacks=[EMAWeightAveraging(decay=0.998, update_starting_at_step=steps // 4)],
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(data, batch_size=batch_size, sampler=sampler))
    return module.network.eval().cpu()


def train_classifier(accelerator: str) -> None:
    module = ClassifierTraining(SmallResNet(len(CLASSES)), 3e-3, weight_decay=0.05)
    network = trained(module, 1500, 64, accelerator)
    val = digits("val")
    with torch.inference_mode():
        correct = network(val.images * 2 - 1).argmax(1) == torch.tensor(val.labels)
    print(f"validation accuracy {correct.float().mean():.4f}")
    folder = WEIGHTS / "digits_classifier"
    folder.mkdir(parents=True, exist_ok=True)
    weights = network.state_dict()
    half = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    save_file(half, folder / "model.safetensors")


def train_gdm(accelerator: str) -> None:
    network = trained(PixelTraining(pixel_unet(), 1e-3), 3000, 64, accelerator)
    network.half().save_pretrained(WEIGHTS / "digits_gdm")


def train_vq(accelerator: str) -> None:
    network = first_stage()
    network.quantize.embedding.weight.data.normal_(std=0.5)
    network = trained(VQTraining(network, 2e-3, weight_decay=0), 2000, 64, accelerator)
    images = digits("val").images * 2 - 1
    with torch.inference_mode():
        latents = network.encode(images).latents
        error = (network.decode(latents).sample.clamp(-1, 1) - images).abs().mean()
        used = network.quantize(latents)[2][2].unique().numel()
    print(f"validation error {error:.4f}, codes used {used} of 256, latent std {latents.std():.3f}")
    network.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    network.half().save_pretrained(WEIGHTS / "digits_ldm" / "vqvae")


def train_ldm(accelerator: str) -> None:
    vq = VQModel.from_pretrained(WEIGHTS / "digits_ldm" / "vqvae")
    vq = vq.float().eval().requires_grad_(False)
    parts = nn.ModuleDict(
        {"unet": latent_unet(), "class_embedding": nn.Embedding(len(CLASSES) + 1, 64)}
    )
    parts = trained(LatentTraining(parts, vq, 1e-3), 4500, 64, accelerator)
    folder = WEIGHTS / "digits_ldm"
    parts["unet"].half().save_pretrained(folder / "unet")
    (folder / "class_embedding").mkdir(exist_ok=True)
    save_file(
        parts["class_embedding"].half().state_dict(),
        folder / "class_embedding" / "model.safetensors",
    )


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
        pl.seed_everything(100)
        PARTS[part](arguments.accelerator)
