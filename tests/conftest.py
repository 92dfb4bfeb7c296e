"""Shared fixtures: the golden runs of the original, and the embedded benchmark."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer, squeezenet1_1
from torchvision.transforms.functional import to_pil_image

import diffguard_pl
from diffguard_pl import Classifier, DiffGuard, calibrate
from diffguard_pl.backbones import (
    FirstStageArchitecture,
    GuidedDiffusionArchitecture,
    LatentDiffusion,
    LatentDiffusionArchitecture,
    PixelDiffusion,
)
from diffguard_pl.diffusion.guidance import ClassifierFreeGuidance, ClassifierGuidance
from diffguard_pl.scores import read

REFERENCE = Path(__file__).parent / "reference"
GDM_ARCHITECTURE = GuidedDiffusionArchitecture(
    image_size=32, num_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(16,), num_head_channels=16
)
LDM_ARCHITECTURE = LatentDiffusionArchitecture(
    image_size=16,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2, 1),
    context_dim=32,
    first_stage=FirstStageArchitecture(resolution=64, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=64),
)


def squeezenet() -> nn.Module:
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    model = squeezenet1_1(num_classes=10)
    torch.random.set_rng_state(state)
    return model


def scores_of(run: Path) -> list[dict]:
    """The results of a run as dicts by column, with None where there is nothing."""
    frame, _ = read(run)
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def saved(images: torch.Tensor, folder: Path, name: str) -> list[str]:
    """Images as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        to_pil_image(image).save(path)
    return [str(path) for path in paths]


@dataclass
class Golden:
    """A run of the original.

    Attributes:
        detector: ours, with the run's settings.
        images: [3, 3, H, W] in [0, 1].
        labels: [3], which the run reconstructed under.
        tensors: what it computed.
    """

    detector: DiffGuard
    images: Tensor
    labels: Tensor
    tensors: dict[str, Tensor]

    @property
    def scores(self) -> dict[str, Tensor]:
        return {name.removeprefix("score."): t for name, t in self.tensors.items() if name.startswith("score.")}


def _golden(family: str, run: str) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    settings = json.loads((REFERENCE / f"{family}_golden.json").read_text())
    tensors = load_file(REFERENCE / f"{family}_golden.safetensors")
    of_run = {key.removeprefix(f"{run}."): tensor for key, tensor in tensors.items() if key.startswith(f"{run}.")}
    return settings["base"] | settings["runs"][run], tensors, of_run


def gdm_golden(run: str) -> Golden:
    settings, tensors, of_run = _golden("gdm", run)
    if run.startswith("smooth"):
        vit = VisionTransformer(28, 7, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10)
        classifier = Classifier(vit, str(REFERENCE / "vit.pt"), input_size=28)
    else:
        classifier = Classifier(squeezenet(), input_size=28)
    metrics, thresholds = settings["early_stop_metric"] or [], settings["early_stop_thresh"]
    detector = DiffGuard(
        classifier,
        PixelDiffusion(str(REFERENCE / "gdm_unet.pt"), GDM_ARCHITECTURE, input_size=28, process_method="resize"),
        ClassifierGuidance(
            settings["classifier_scale"],
            cutouts=max(0, settings["cutouts_num"]),
            cutout_size=settings["cutouts_size"],
            x0hat=not settings.get("no_x0_hat", False),
        ),
        steps=8,
        discrepancies=["ssim", "fsim", "mdsi", "gmsd", "l2", "logits"],
        compare_to="unguided" if settings["uncond_aux"] else "input",
        early_stop_steps=settings["early_stop_steps"],
        skip_first_steps=settings["skip_first_steps"],
        early_stop=dict(zip(metrics, thresholds, strict=True)) if metrics else None,
        forback_skip_diff=settings["forback_skip_diff"],
    )
    return Golden(detector, (tensors["image"] + 1) / 2, tensors["label"], of_run)


def ldm_golden(run: str) -> Golden:
    settings, tensors, of_run = _golden("ldm", run)
    detector = DiffGuard(
        Classifier(squeezenet(), input_size=64, cam_layer="features.12"),
        LatentDiffusion(str(REFERENCE / "ldm_model.ckpt"), LDM_ARCHITECTURE),
        ClassifierFreeGuidance(
            settings["denoise_guidance_scale"],
            cam_cut=settings["cam_cut"] if settings["use_cam"] else None,
            inversion_label=not settings["unconditional_diffuse"],
            inversion_scale=settings["diffuse_guidance_scale"],
        ),
        steps=settings["ddim_steps"],
        discrepancies=["ssim", "mdsi", "gmsd", "l2", "logits"],
    )
    return Golden(detector, (tensors["image"] + 1) / 2, tensors["label"], of_run)


class RowCounter:
    """Counts the rows that go through a network."""

    def __init__(self, network: nn.Module):
        self.rows = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.rows += len(inputs[0])


@pytest.fixture(scope="session")
def digits_ldm() -> DiffGuard:
    return diffguard_pl.load("digits_ldm")


@pytest.fixture(scope="session")
def digits_gdm() -> DiffGuard:
    return diffguard_pl.load("digits_gdm")


@pytest.fixture(scope="session")
def file(tmp_path_factory) -> Path:
    """What the command writes for the digits."""
    folder = tmp_path_factory.mktemp("calibrated")
    settings = ["--model.steps", "5", "--model.discrepancies", "[maps, kl]", "--tpr", "0.95"]
    calibrate.main(["--config", "digits_ldm", *settings, "--trainer.default_root_dir", str(folder)])
    return folder / "detector.json"


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()
