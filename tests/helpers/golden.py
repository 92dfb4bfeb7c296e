"""Golden runs of the original and networks with their weights."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer, squeezenet1_1

from diffguard_pl import Classifier, DiffGuard
from diffguard_pl.backbones import (
    FirstStageArchitecture,
    GuidedDiffusionArchitecture,
    LatentDiffusion,
    LatentDiffusionArchitecture,
    PixelDiffusion,
)
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.scores.discrepancies import Seen
from helpers import ROOT

REFERENCE = ROOT / "tests" / "reference"
GDM_ARCHITECTURE = GuidedDiffusionArchitecture(
    image_size=32,
    num_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(16,),
    num_head_channels=16,
)
LDM_ARCHITECTURE = LatentDiffusionArchitecture(
    image_size=16,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2, 1),
    context_dim=32,
    first_stage=FirstStageArchitecture(
        resolution=64, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=64
    ),
)


def squeezenet() -> nn.Module:
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    model = squeezenet1_1(num_classes=10)
    torch.random.set_rng_state(state)
    return model


@dataclass
class Golden:
    """A run of the original.

    Attributes:
        diffguard: ours, with the run's settings.
        images: [3, 3, H, W] in [0, 1].
        labels: [3], which the run reconstructed under.
        tensors: what it computed.
    """

    diffguard: DiffGuard
    images: Tensor
    labels: Tensor
    tensors: dict[str, Tensor]

    @property
    def scores(self) -> dict[str, Tensor]:
        return {
            name.removeprefix("score."): t
            for name, t in self.tensors.items()
            if name.startswith("score.")
        }


def _golden(family: str, run: str) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    settings = json.loads((REFERENCE / f"{family}_golden.json").read_text())
    tensors = load_file(REFERENCE / f"{family}_golden.safetensors")
    of_run = {
        key.removeprefix(f"{run}."): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{run}.")
    }
    return settings["base"] | settings["runs"][run], tensors, of_run


def gdm_golden(run: str) -> Golden:
    settings, tensors, of_run = _golden("gdm", run)
    if run.startswith("smooth"):
        vit = VisionTransformer(
            28, 7, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
        )
        classifier = Classifier(vit, str(REFERENCE / "vit.pt"), input_size=28)
    else:
        classifier = Classifier(squeezenet(), input_size=28)
    metrics, thresholds = settings["early_stop_metric"] or [], settings["early_stop_thresh"]
    detector = DiffGuard(
        classifier,
        PixelDiffusion(
            str(REFERENCE / "gdm_unet.pt"), GDM_ARCHITECTURE, input_size=28, process_method="resize"
        ),
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


class NFECounter:
    """Counts the rows that go through a network."""

    def __init__(self, network: nn.Module):
        self.nfe = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.nfe += len(inputs[0])


def unit(x: torch.Tensor) -> torch.Tensor:
    return ((x + 1) / 2).clamp(0, 1)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def _scores(golden: Golden) -> dict[str, torch.Tensor]:
    """Our scores of the original's reconstructions."""
    detector, recon = golden.diffguard, unit(golden.tensors["recon"])
    recon, reference = (recon[:, 0], recon[:, 1]) if recon.ndim == 5 else (recon, golden.images)
    scores = detector.discrepancies(
        *(Seen(x, *detector.classifier.view(x)) for x in (reference, recon))
    )
    return {name: scores[name] for name in golden.scores}
