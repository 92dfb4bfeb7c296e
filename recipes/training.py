"""What the recipes of the embedded benchmarks share: networks, objectives, resumable training."""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, VQModel
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, TensorDataset

from diffguard_pl.backbones.load import block_types
from diffguard_pl.datamodules.base import ImageSet
from diffguard_pl.diffusion.ddim import Level
from diffguard_pl.diffusion.parametrisation import (
    EDM,
    Parametrisation,
    RectifiedFlow,
)
from diffguard_pl.diffusion.schedule import (
    alpha_bar_of_flow,
    alpha_bar_of_sigma,
    linear_alpha_bar,
    scaled_linear_alpha_bar,
)
from diffguard_pl.errors import InputError

WEIGHTS = Path(__file__).parent.parent / "diffguard_pl" / "weights"
"""Folder of the weights in the package."""
LABEL_DROPOUT = 0.15
LATENT_SIZE = 8
SEED = 100
STEPS_AN_EPOCH = 250
"""Number of steps between two checkpoints."""

Augment = Callable[[Tensor], Tensor]
"""Images [N, 3, H, W] in [0, 1] -> images of the same size."""


def unchanged(images: Tensor) -> Tensor:
    return images


# ---- networks


def pixel_unet(
    size: int, channels: Sequence[int], attention_levels: Sequence[bool], groups: int
) -> UNet2DModel:
    """Build a small guided-diffusion UNet.

    Args:
        size: Side of the images, in pixels.
        channels: Number of channels of each level.
        attention_levels: Whether each level has attention.
        groups: Number of groups of the normalisation.
    """
    plain = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
    down, up = block_types(attention_levels, plain, ("AttnDownBlock2D", "AttnUpBlock2D"))
    return UNet2DModel(
        sample_size=size,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=32,
        attn_norm_num_groups=groups,
        norm_num_groups=groups,
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


def first_stage(size: int, levels: int, codes: int) -> VQModel:
    """Build an autoencoder of 32 channels to latents of 3 channels.

    Args:
        size: Side of the images, in pixels.
        levels: Number of levels; each but the last halves the side.
        codes: Number of codes.
    """
    network = VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(32,) * levels,
        sample_size=size,
        num_vq_embeddings=codes,
        scaling_factor=1.0,
    )
    network.quantize.embedding.weight.data.normal_(std=0.5)
    return network


# ---- objectives


class Training(pl.LightningModule):
    """Minimisation of ``loss(images, labels)`` with AdamW and a cosine learning rate.

    Args:
        network: What is trained.
        learning_rate: Highest learning rate.
        weight_decay: Weight decay of AdamW.
        augment: Applied to the images of each batch. Defaults to nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        weight_decay: float = 0.01,
        augment: Augment = unchanged,
    ):
        super().__init__()
        self.network, self.learning_rate, self.weight_decay = network, learning_rate, weight_decay
        self.augment = augment

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def on_train_epoch_start(self) -> None:
        # a resumed training draws the same numbers as one that was never interrupted
        torch.manual_seed(SEED + self.current_epoch)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = self.loss(self.augment(images), labels)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        # where nobody sees the progress bar, such as in a log file
        loss = self.trainer.callback_metrics["loss_epoch"]
        self.print(f"step {self.global_step}: loss {loss:.4f}")

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

    def __init__(self, *arguments: Any, label_smoothing: float = 0.0, **settings: Any):
        super().__init__(*arguments, **settings)
        self.label_smoothing = label_smoothing

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.network(images * 2 - 1)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


class PixelTraining(Training):
    """Noise prediction on images in [-1, 1] (Ho et al. 2020, eq. 14)."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        x, t, noise = noisy(images * 2 - 1, linear_alpha_bar())
        return F.mse_loss(self.network(x, t).sample.float(), noise)


class VQTraining(Training):
    """Reconstruction error of the autoencoder, L1 + L2, and its commitment loss."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        images = images * 2 - 1
        output = self.network(images)
        sample = output.sample.float()
        return F.l1_loss(sample, images) + F.mse_loss(sample, images) + output.commit_loss.mean()


class LatentTraining(Training):
    """Noise prediction on latents, labels dropped at random (Ho & Salimans 2022, alg. 1)."""

    def __init__(self, network: nn.ModuleDict, first_stage: VQModel, *rest: Any, **settings: Any):
        super().__init__(network, *rest, **settings)
        self.first_stage = [first_stage]  # in a list: frozen, not a submodule to train

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        first_stage = self.first_stage[0].to(images.device)
        embedding = self.network["class_embedding"]
        with torch.no_grad():
            latents = first_stage.encode(images * 2 - 1).latents.float()
        dropped = torch.rand(len(labels), device=labels.device) < LABEL_DROPOUT
        context = embedding(labels.masked_fill(dropped, embedding.num_embeddings - 1))[:, None]
        x, t, target = self.objective(latents * first_stage.config.scaling_factor)
        return F.mse_loss(self.network["unet"](x, t, context).sample.float(), target)

    def objective(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents [N, C, H, W] with noise, their timesteps [N], and what to predict."""
        return noisy(x, scaled_linear_alpha_bar())


class EDMTraining(LatentTraining):
    """EDM's objective with its distribution of noise levels (Karras et al. 2022, table 1)."""

    parametrisation: Parametrisation = EDM(sigma_data=1.0)
    scheduler: ClassVar[dict[str, Any]] = {"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}

    def objective(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # EDM has a mean of -1.2 for data of standard deviation 0.5; here it is 1.
        sigma = torch.exp(math.log(2) - 1.2 + 1.2 * torch.randn(len(x), device=x.device))
        return parametrised(x, alpha_bar_of_sigma(sigma.double()), self.parametrisation)


class FlowTraining(LatentTraining):
    """Flow matching at uniform times (Lipman et al. 2023)."""

    parametrisation: Parametrisation = RectifiedFlow()
    scheduler: ClassVar[dict[str, Any]] = {"_class_name": "FlowMatchEulerDiscreteScheduler"}

    def objective(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = torch.rand(len(x), device=x.device)
        return parametrised(x, alpha_bar_of_flow(s.double()), self.parametrisation)


def parametrised(
    x: Tensor, alpha_bar: Tensor, parametrisation: Parametrisation
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [N, C, H, W] with noise as a network takes it, its times [N], and its target.

    Args:
        x: Latents.
        alpha_bar: Signal level [N] of each, in float64.
        parametrisation: What the network takes and predicts.
    """
    level, noise = Level.of(alpha_bar, x), torch.randn_like(x)
    noisy_x = level.signal * x + level.noise * noise
    inputs, times = parametrisation.inputs(noisy_x, alpha_bar, level)
    return inputs, times, parametrisation.target(x, noise, level)


def noisy(x: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [N, C, H, W] at random timesteps [N], the timesteps, and the noise in it."""
    t = torch.randint(len(alpha_bar), (len(x),), device=x.device)
    level = alpha_bar.to(x.device)[t].to(x.dtype).view(-1, 1, 1, 1)
    noise = torch.randn_like(x)
    return level.sqrt() * x + (1 - level).sqrt() * noise, t, noise


class RandomByEpoch(Sampler[int]):
    """Random indices with replacement, the same for an epoch whether training was resumed or not.

    Args:
        images: Number of images to choose from.
        count: Number of indices of an epoch.
    """

    def __init__(self, images: int, count: int):
        self.images, self.count, self.epoch = images, count, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the indices of this epoch; the trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(SEED + self.epoch)
        return iter(torch.randint(self.images, (self.count,), generator=generator).tolist())

    def __len__(self) -> int:
        return self.count


def trained(
    module: Training,
    images: Tensor,
    labels: Tensor,
    checkpoints: Path,
    steps: int,
    batch_size: int = 64,
    **trainer_settings: Any,
) -> nn.Module:
    """Train, resuming from the last checkpoint, and return the averaged network on the CPU.

    A training that has ended is not repeated.

    Args:
        module: The training.
        images: Images [N, 3, H, W] in [0, 1].
        labels: Their labels [N].
        checkpoints: Folder of the last checkpoint, and of the averaged network at the end.
        steps: Number of steps, rounded up to whole epochs of ``STEPS_AN_EPOCH``.
        batch_size: Number of images of a step.
        trainer_settings: Settings of the trainer, such as accelerator and precision.

    Returns:
        The network, with the moving average of its parameters.
    """
    network, finished = module.network, checkpoints / f"after_{steps}_steps.safetensors"
    if finished.exists():
        load_model(network, finished)
        return network.eval()
    data = TensorDataset(images, labels)
    sampler = RandomByEpoch(len(data), STEPS_AN_EPOCH * batch_size)
    epochs = -(-steps // STEPS_AN_EPOCH)
    average = EMAWeightAveraging(decay=0.998, update_starting_at_step=steps // 4)
    keep = ModelCheckpoint(checkpoints, filename="last", enable_version_counter=False)
    trainer = pl.Trainer(
        devices=1,
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=[average, keep],
        logger=False,
        **trainer_settings,
    )
    last = checkpoints / "last.ckpt"
    trainer.fit(
        module,
        DataLoader(data, batch_size=batch_size, sampler=sampler),
        ckpt_path=last if last.exists() else None,
        weights_only=True,
    )
    save_model(network.eval().cpu(), str(finished))
    return network


# ---- one benchmark


@dataclass
class Benchmark:
    """What the networks of a benchmark are trained on, and where weights and checkpoints go.

    Each method trains one part, prints what validation images say of it, and saves its weights in
    half precision.

    Attributes:
        name: First part of the names of its weights.
        train: Training images.
        val: Validation images.
        weights: Folder of the weights.
        checkpoints: Folder of the checkpoints.
        trainer: Settings of the trainer, such as accelerator and precision.
    """

    name: str
    train: ImageSet
    val: ImageSet
    weights: Path
    checkpoints: Path
    trainer: dict[str, Any] = field(default_factory=dict)

    def train_classifier(
        self, module: ClassifierTraining, steps: int, batch_size: int = 64
    ) -> None:
        network = self._trained("classifier", module, steps, batch_size)
        with torch.inference_mode():
            predicted = network(self.val.images * 2 - 1).argmax(1)
        correct = (predicted == torch.tensor(self.val.labels)).float().mean()
        print(f"validation accuracy {correct:.4f}")
        save_half(network, self.weights / f"{self.name}_classifier")

    def train_gdm(self, module: PixelTraining, steps: int) -> None:
        network = self._trained("gdm", module, steps)
        network.half().save_pretrained(self.weights / f"{self.name}_gdm")

    def train_vq(self, module: VQTraining, steps: int) -> None:
        network = self._trained("vq", module, steps)
        images = self.val.images * 2 - 1
        with torch.inference_mode():
            latents = network.encode(images).latents
            error = (network.decode(latents).sample.clamp(-1, 1) - images).abs().mean()
            used = network.quantize(latents)[2][2].unique().numel()
        codes, std = network.config.num_vq_embeddings, latents.std().item()
        print(f"validation error {error:.4f}, codes used {used} of {codes}, latent std {std:.3f}")
        network.register_to_config(scaling_factor=round(1 / std, 4))
        network.half().save_pretrained(self.weights / f"{self.name}_ldm" / "vqvae")

    def train_ldm(self, classes: int, steps: int, augment: Augment = unchanged) -> None:
        self._train_latent(LatentTraining, "ldm", classes, steps, augment)

    def train_parametrised(
        self, objective: type[EDMTraining] | type[FlowTraining], part: str, classes: int, steps: int
    ) -> None:
        """Train the latent UNet on another objective, and save it as a diffusers pipeline.

        Args:
            objective: The training.
            part: Name of the part; the weights are saved beside the checkpoints.
            classes: Number of classes.
            steps: Number of steps.
        """
        folder = self._train_latent(objective, part, classes, steps)
        shutil.copytree(self._first_stage, folder / "vqvae", dirs_exist_ok=True)
        (folder / "scheduler").mkdir(exist_ok=True)
        config = folder / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps(objective.scheduler, indent=2) + "\n")

    def _train_latent(
        self,
        objective: type[LatentTraining],
        part: str,
        classes: int,
        steps: int,
        augment: Augment = unchanged,
    ) -> Path:
        """Train a latent UNet and its class embedding; return the folder of their weights."""
        if not self._first_stage.is_dir():
            raise InputError(f"{part}: needs the first stage {self._first_stage}; train vq before")
        vq = VQModel.from_pretrained(self._first_stage).float().eval().requires_grad_(False)
        unet = latent_unet()
        parts = nn.ModuleDict({"unet": unet, "class_embedding": nn.Embedding(classes + 1, 64)})
        module = objective(parts, vq, 1e-3, augment=augment)
        parts = self._trained(part, module, steps)
        weights = self.weights if part == "ldm" else self.checkpoints.parent
        folder = weights / f"{self.name}_{part}"
        parts["unet"].half().save_pretrained(folder / "unet")
        save_half(parts["class_embedding"], folder / "class_embedding")
        return folder

    @property
    def _first_stage(self) -> Path:
        return self.weights / f"{self.name}_ldm" / "vqvae"

    def _trained(self, part: str, module: Training, steps: int, batch_size: int = 64) -> Any:
        images, labels = self.train.images, torch.tensor(self.train.labels)
        checkpoints = self.checkpoints / part
        return trained(module, images, labels, checkpoints, steps, batch_size, **self.trainer)


def save_half(network: nn.Module, folder: Path) -> None:
    """Save a network's weights in half precision as ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = network.state_dict()
    half = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    save_file(half, folder / "model.safetensors")


# ---- command line

Parts = Mapping[str, Callable[[Benchmark], None]]
"""What trains each part of a benchmark, by name; in the order of training."""


def recipe_parser(description: str | None, parts: Parts) -> argparse.ArgumentParser:
    """Return the parser of a recipe."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        default=list(parts),
        help=f"what to train: {', '.join(parts)} (default: all)",
    )
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, ... (default: auto)")
    return parser


def run_recipe(
    parser: argparse.ArgumentParser,
    parts: Parts,
    benchmark_of: Callable[[argparse.Namespace], Benchmark],
) -> None:
    """Train the parts that the command line names."""
    given = parser.parse_args()
    for part in given.parts:
        if part not in parts:
            parser.error(f"unknown part {part!r}; choose from: {', '.join(parts)}")
    try:
        benchmark = benchmark_of(given)
        for part in given.parts:
            pl.seed_everything(SEED)
            parts[part](benchmark)
    except InputError as error:
        sys.exit(f"error: {error}")
