"""Every config of ``configs/backbones`` runs, with small networks in the layout of real ones."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, UNet2DModel
from helpers import edm, sit
from helpers.small_models import autoencoder

from diffguard_pl.classifiers.resnets import ResNet18_32x32
from diffguard_pl.config import config_names

CONFIGS = [name for name in config_names() if name.startswith("backbones/")]
CLASSES = 1000


def edm_cifar10(folder: Path) -> list[str]:
    edm.save_for(folder, "edm-cifar10-32x32-cond-vp.pt", "ddpmpp", 10)
    edm.save_for(folder, "edm-cifar10-32x32-uncond-vp.pt", "ncsnpp", 0)
    torch.manual_seed(0)
    torch.save(ResNet18_32x32(10).state_dict(), folder / "classifier.ckpt")
    images = ["--data.only", "[tin]", "--model.backbone.input_size", "32"]
    return ["--model.classifier.checkpoint", "classifier.ckpt", *images]


def edm_imagenet64(folder: Path) -> list[str]:
    edm.save_for(folder, "edm-imagenet-64x64-cond-adm.pt", "adm", CLASSES)
    cutouts = ["--model.guidance.cutouts", "1", "--model.guidance.cutout_size", "4"]
    return ["--model.steps", "5", "--model.early_stop_steps", "1", *cutouts]


def edm2_imagenet64(folder: Path) -> list[str]:
    edm.save_for(folder, "edm2-img64-s.pt", "edm2_pixel", CLASSES)
    edm.save_for(folder, "edm2-img64-xs-uncond.pt", "edm2_unconditional", 0)
    return []


def edm2_imagenet512(folder: Path) -> list[str]:
    edm.save_for(folder, "edm2-img512-s.pt", "edm2", CLASSES)
    edm.save_for(folder, "edm2-img512-xs-uncond.pt", "edm2_latent_unconditional", 0)
    return vae(folder)


def vae(folder: Path) -> list[str]:
    autoencoder().save_pretrained(folder / "vae")
    return ["--model.backbone.vae", "vae"]


def sit_256(folder: Path) -> list[str]:
    sit.save(folder, "SiT-XL-2-256.pt", CLASSES)
    return [*vae(folder), "--model.backbone.num_heads", "2"]


def consistency(folder: Path) -> list[str]:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=16,
        num_class_embeds=CLASSES,
    )
    unet.save_pretrained(folder / "model" / "unet")
    CMStochasticIterativeScheduler().save_pretrained(folder / "model" / "scheduler")
    cutouts = ["--model.guidance.cutouts", "1", "--model.guidance.cutout_size", "8"]
    return ["--model.backbone.checkpoint", "model", *cutouts]


def text_to_image(name: str) -> Callable[[Path], list[str]]:
    def save(folder: Path) -> list[str]:
        pytest.importorskip("transformers")
        from helpers import text_to_image

        settings = {"prediction_type": "v_prediction"} if name == "sd21" else {}
        make = {
            "sdxl": text_to_image.stable_diffusion_xl,
            "sd3": text_to_image.stable_diffusion_3,
        }.get(name, text_to_image.stable_diffusion)
        make(folder / "tokens", **settings).save_pretrained(folder / "model")
        return ["--model.backbone.checkpoint", "model"]

    return save


MAKE: dict[str, Callable[[Path], list[str]]] = {
    "edm_cifar10": edm_cifar10,
    "edm_imagenet64": edm_imagenet64,
    "edm2_imagenet64": edm2_imagenet64,
    "edm2_imagenet512": edm2_imagenet512,
    "sit": sit_256,
    "consistency_imagenet64": consistency,
} | {name: text_to_image(name) for name in ("sd15", "sd21", "sdxl", "sd3")}

LIKE_OTHERS = ("edm2_imagenet64", "sd21", "sdxl")
"""Configs that differ from others in what tests/backbones compares with the originals."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_OTHERS else name for name in MAKE],
)
def test_a_config_runs_two_batches_of_each_set(name: str, run, tmp_path: Path):
    settings = MAKE[name](tmp_path)
    if "cifar10" not in name:
        # Images of the small model's size, or larger ones that it resizes.
        side = "16" if "64" not in name else "32"
        settings += ["--data.only", "[species]", "--data.image_size", side, "--data.resize", side]
        settings += ["--model.classifier.input_size", "64"]
        if "64" in name:
            settings += ["--model.backbone.input_size", side]
    rows = run(
        "--config", f"backbones/{name}", *settings, "--model.discrepancies", "[l2]",
        "--model.baselines", "[msp]", "--data.batch_size", "1", "--data.num_workers", "0",
        "--page.enabled", "false",
    )  # fmt: skip
    assert len(rows) == 4
    assert all(math.isfinite(row["l2"]) for row in rows)
    if name == "consistency_imagenet64":
        assert all(math.isfinite(row["projection_regret"]) for row in rows)


def test_every_config_is_tried():
    assert {f"backbones/{name}" for name in MAKE} == {*CONFIGS}
