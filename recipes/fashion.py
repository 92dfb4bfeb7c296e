"""Train the weights of the Fashion-MNIST benchmark: ``python recipes/fashion.py [PARTS]``.

Trains on the training images of the eight known classes of a split. Parts: classifier, gdm, vq,
ldm (which needs vq), by default; besides, edm and flow: ldm's network on the objectives of EDM and
of flow matching, for docs/benchmarks/fashion.md. Two hours a split on one CPU core, of which gdm
takes one; a training that was interrupted goes on from its last checkpoint. Weights are stored in
half precision: those of the first split in the package; those of the others, and of edm and flow,
in ``--out``.
"""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad
from training import (
    WEIGHTS,
    Benchmark,
    ClassifierTraining,
    EDMTraining,
    FlowTraining,
    PixelTraining,
    VQTraining,
    first_stage,
    pixel_unet,
    recipe_parser,
    run_recipe,
)

from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.fashion import CLASS_SPLITS, IMAGE_SIZE, FashionDataModule

CLASSES = 8


def flip_and_shift(images: Tensor) -> Tensor:
    """Mirror half of the images, and shift the batch by up to two pixels."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    images = torch.where(mirrored, images.flip(-1), images)
    padded = pad(images, (2, 2, 2, 2))
    x, y = torch.randint(0, 5, (2,)).tolist()
    return padded[..., y : y + IMAGE_SIZE, x : x + IMAGE_SIZE]


def train_classifier(benchmark: Benchmark) -> None:
    module = ClassifierTraining(
        SmallResNet(CLASSES), 3e-3, weight_decay=0.05, augment=flip_and_shift
    )
    benchmark.train_classifier(module, 4000, batch_size=128)


def train_gdm(benchmark: Benchmark) -> None:
    unet = pixel_unet(IMAGE_SIZE, (16, 32, 64, 64), (False, False, True, True), groups=16)
    benchmark.train_gdm(PixelTraining(unet, 1e-3), 6000)


def train_vq(benchmark: Benchmark) -> None:
    network = first_stage(IMAGE_SIZE, levels=3, codes=512)
    benchmark.train_vq(VQTraining(network, 2e-3, weight_decay=0), 2500)


def train_ldm(benchmark: Benchmark) -> None:
    benchmark.train_ldm(CLASSES, 6000)


def train_edm(benchmark: Benchmark) -> None:
    benchmark.train_parametrised(EDMTraining, "edm", CLASSES, 6000)


def train_flow(benchmark: Benchmark) -> None:
    benchmark.train_parametrised(FlowTraining, "flow", CLASSES, 6000)


PARTS = {"classifier": train_classifier, "gdm": train_gdm, "vq": train_vq, "ldm": train_ldm}
OTHER_PARTS = {"edm": train_edm, "flow": train_flow}


def benchmark_of(given: Namespace) -> Benchmark:
    """Return the images of one class split, and where its weights go."""
    data = FashionDataModule(class_split=given.class_split, root=given.root)
    out = given.out / f"split_{given.class_split}"
    return Benchmark(
        name="fashion",
        train=data.train_source(),
        val=data.val_images(),
        weights=WEIGHTS if given.class_split == 1 else out,
        checkpoints=out / "checkpoints",
        trainer={"accelerator": given.accelerator, "precision": given.precision},
    )


def main() -> None:
    parser = recipe_parser(__doc__, PARTS)
    parser.add_argument(
        "--class-split",
        type=int,
        default=1,
        choices=range(1, len(CLASS_SPLITS) + 1),
        help="the split to train on (default: 1)",
    )
    parser.add_argument("--root", help="folder of Fashion-MNIST's IDX files (default: found)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/fashion"),
        help="folder of checkpoints, and of the other splits' weights (default: runs/fashion)",
    )
    parser.add_argument("--precision", default="bf16-mixed", help="(default: bf16-mixed)")
    run_recipe(parser, PARTS | OTHER_PARTS, benchmark_of)


if __name__ == "__main__":
    main()
