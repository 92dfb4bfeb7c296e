"""Train the weights of the digits benchmark: ``python recipes/digits.py [PARTS]``.

Trains on the 790 training digits alone, slightly shifted, rotated and scaled. Parts: classifier,
gdm, vq, ldm (which needs vq); all by default. Under an hour on two CPU cores, minutes on a GPU; a
training that was interrupted goes on from its last checkpoint, in runs/digits. Weights are stored
in half precision.
"""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from training import (
    WEIGHTS,
    Benchmark,
    ClassifierTraining,
    PixelTraining,
    VQTraining,
    first_stage,
    pixel_unet,
    recipe_parser,
    run_recipe,
)

from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.digits import CLASSES, IMAGE_SIZE, digits


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


def train_classifier(benchmark: Benchmark) -> None:
    module = ClassifierTraining(
        SmallResNet(len(CLASSES)), 3e-3, weight_decay=0.05, augment=augment, label_smoothing=0.05
    )
    benchmark.train_classifier(module, 1500)


def train_gdm(benchmark: Benchmark) -> None:
    unet = pixel_unet(IMAGE_SIZE, (32, 64, 64), (False, True, True), groups=32)
    benchmark.train_gdm(PixelTraining(unet, 1e-3, augment=augment), 3000)


def train_vq(benchmark: Benchmark) -> None:
    network = first_stage(IMAGE_SIZE, levels=2, codes=256)
    benchmark.train_vq(VQTraining(network, 2e-3, weight_decay=0, augment=augment), 2000)


def train_ldm(benchmark: Benchmark) -> None:
    benchmark.train_ldm(len(CLASSES), 4500, augment)


PARTS = {"classifier": train_classifier, "gdm": train_gdm, "vq": train_vq, "ldm": train_ldm}


def benchmark_of(given: Namespace) -> Benchmark:
    """Return the digits, and where their weights go."""
    trainer = {"accelerator": given.accelerator}
    checkpoints = Path("runs/digits/checkpoints")
    return Benchmark("digits", digits("train"), digits("val"), WEIGHTS, checkpoints, trainer)


if __name__ == "__main__":
    run_recipe(recipe_parser(__doc__, PARTS), PARTS, benchmark_of)
