"""Golden runs of the original, DiffGuard with their weights and settings, and its results."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

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
from diffguard_pl.diffusion.ddim import Step, StepCallback
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


FLOAT32 = torch.finfo(torch.float32).eps
"""Relative spacing of float32 numbers, the unit of its rounding errors."""


def squeezenet() -> nn.Module:
    """Return the classifier of most golden runs.

    Its weights are read from a file: weights drawn after a seed differ in the last bit with the
    instruction set of the CPU.
    """
    model = squeezenet1_1(num_classes=10)
    model.load_state_dict(torch.load(REFERENCE / "squeezenet1_1.pt", weights_only=True))
    return model


@contextmanager
def without_onednn() -> Iterator[None]:
    """Compute float32 convolutions by one algorithm, instead of the one oneDNN likes best here."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@dataclass
class Golden:
    """A run of the original, in float32 or converted to float64.

    Attributes:
        settings: The original's settings of the run.
        diffguard: Our model with these settings.
        images: [3, 3, H, W] in [0, 1].
        labels: [3], the labels that the run reconstructed under.
        tensors: What the original computed.
    """

    settings: dict[str, Any]
    diffguard: DiffGuard
    images: Tensor
    labels: Tensor
    tensors: dict[str, Tensor]

    @property
    def scores(self) -> dict[str, Tensor]:
        return {
            name.removeprefix("score."): tensor
            for name, tensor in self.tensors.items()
            if name.startswith("score.")
        }

    @property
    def reconstructions(self) -> tuple[Tensor, Tensor | None]:
        """Guided and, where the run has them, unguided reconstructions [3, 3, H, W] in [0, 1]."""
        recon = unit(self.tensors["recon"])
        return (recon[:, 0], recon[:, 1]) if recon.ndim == 5 else (recon, None)

    def our_scores(self) -> dict[str, Tensor]:
        """Score the original's reconstructions with our discrepancies."""
        guided, unguided = self.reconstructions
        reference = self.images if unguided is None else unguided
        view = self.diffguard.classifier.view
        scores = self.diffguard.discrepancies(
            Seen.of(reference, view(reference)), Seen.of(guided, view(guided))
        )
        return {name: scores[name] for name in self.scores}


@dataclass
class Trace:
    """What our plain loops compute of the images of a golden run.

    Attributes:
        inversion: x after each inversion step, by image and schedule index.
        noise: [3, C, h, w] where inversion ended.
        stop_index: [3] index of the last inversion step.
        denoising: x after each guided denoising step, by image and index.
        denoising_unguided: x after each unguided step, by image and index.
        guided: [3, 3, H, W] reconstructions in [0, 1].
        unguided: The same without guidance, None where the run has none.
        scores: [3] by name.
        mask: Where guidance acts [3, 1, h, w]; None for everywhere.
    """

    inversion: dict[tuple[int, int], Tensor]
    noise: Tensor
    stop_index: Tensor
    denoising: dict[tuple[int, int], Tensor]
    denoising_unguided: dict[tuple[int, int], Tensor]
    guided: Tensor
    unguided: Tensor | None
    scores: dict[str, Tensor]
    mask: Tensor | None

    def states(self, phase: str) -> Tensor:
        """Return the steps of a phase in their order, [image, step, C, h, w]; all images alike."""
        states: dict[tuple[int, int], Tensor] = getattr(self, phase)
        indices = sorted({index for _, index in states}, reverse=phase != "inversion")
        images = range(len(self.noise))
        return torch.stack([torch.stack([states[i, k] for k in indices]) for i in images])


def trace_of(golden: Golden) -> Trace:
    """Run the plain loops of our model on a golden run and keep every state."""
    diffguard, count = golden.diffguard, len(golden.images)
    inversion: dict[tuple[int, int], Tensor] = {}
    denoising: dict[tuple[int, int], Tensor] = {}

    def keep(states: dict[tuple[int, int], Tensor]) -> StepCallback:
        def callback(step: Step) -> None:
            for row, index, x in zip(
                step.batch_index.tolist(), step.index.tolist(), step.x, strict=True
            ):
                states[row, index] = x.clone()

        return callback

    prediction = diffguard.classify(golden.images, golden.labels)
    inverted = diffguard.invert(golden.images, prediction, keep(inversion))
    recon = diffguard.reconstruct(inverted, prediction, keep(denoising))
    scores = diffguard.compare(golden.images, prediction, recon)
    return Trace(
        inversion,
        inverted.noise,
        inverted.stop_index,
        {(row, index): x for (row, index), x in denoising.items() if row < count},
        {(row - count, index): x for (row, index), x in denoising.items() if row >= count},
        recon.guided,
        recon.unguided,
        scores,
        diffguard.latent_mask(prediction, inverted.noise),
    )


@cache
def trace(family: str, run: str, dtype: torch.dtype) -> Trace:
    """Run a golden run once a session; float32 without oneDNN."""
    make = gdm_golden if family == "gdm" else ldm_golden
    with without_onednn():
        return trace_of(make(run, dtype))


def _golden(family: str, run: str, dtype: torch.dtype) -> tuple[dict, dict, dict]:
    """Return settings, the tensors that the runs share, and those of the run."""
    settings = json.loads((REFERENCE / f"{family}_golden.json").read_text())
    tensors = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in load_file(REFERENCE / f"{family}_golden.safetensors").items()
    }
    of_run = {
        key.removeprefix(f"{run}."): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{run}.")
    }
    return settings["base"] | settings["runs"][run], tensors, of_run


def gdm_golden(run: str, dtype: torch.dtype = torch.float32) -> Golden:
    """Load a run of the pixel-space family."""
    settings, tensors, of_run = _golden("gdm", run, dtype)
    if run.startswith("smooth"):
        vit = VisionTransformer(
            28, 7, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
        )
        classifier = Classifier(vit, str(REFERENCE / "vit.pt"), input_size=28)
    else:
        classifier = Classifier(squeezenet(), input_size=28)
    metrics, thresholds = settings["early_stop_metric"] or [], settings["early_stop_thresh"]
    diffguard = DiffGuard(
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
    images = (tensors["image"] + 1) / 2
    return Golden(settings, diffguard.to(dtype), images, tensors["label"], of_run)


def ldm_golden(run: str, dtype: torch.dtype = torch.float32) -> Golden:
    """Load a run of the latent-space family.

    The original's schedule is that of the checkpoint, which holds it in float32. In float64 our
    model takes these numbers, like all other parameters, instead of more exact ones.
    """
    settings, tensors, of_run = _golden("ldm", run, dtype)
    backbone = LatentDiffusion(str(REFERENCE / "ldm_model.ckpt"), LDM_ARCHITECTURE)
    if dtype == torch.float64:
        checkpoint = torch.load(REFERENCE / "ldm_model.ckpt", weights_only=True)
        backbone.alpha_bar = checkpoint["state_dict"]["alphas_cumprod"].double()
    diffguard = DiffGuard(
        Classifier(squeezenet(), input_size=64, cam_layer="features.12"),
        backbone,
        ClassifierFreeGuidance(
            settings["denoise_guidance_scale"],
            cam_cut=settings["cam_cut"] if settings["use_cam"] else None,
            inversion_label=not settings["unconditional_diffuse"],
            inversion_scale=settings["diffuse_guidance_scale"],
        ),
        steps=settings["ddim_steps"],
        discrepancies=["ssim", "mdsi", "gmsd", "l2", "logits"],
    )
    images = (tensors["image"] + 1) / 2
    return Golden(settings, diffguard.to(dtype), images, tensors["label"], of_run)


class NFECounter:
    """Number of images that have gone through a network."""

    def __init__(self, network: nn.Module):
        self.nfe = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.nfe += len(inputs[0])


def unit(x: Tensor) -> Tensor:
    """Bring images in [-1, 1] to [0, 1]."""
    return ((x + 1) / 2).clamp(0, 1)


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    """Assert that no value differs by more than ``tolerance``; the types may differ."""
    torch.testing.assert_close(a.double(), b.double(), atol=tolerance, rtol=0)


def float32_limit(float32: Tensor, float64: Tensor) -> float:
    """Return how far other float32 data of a quantity may lie from its float64 value.

    Two float32 computations of a quantity, the original's and ours, err by the same order: ten
    times our largest error, and never less than 16 rounding errors of the largest value.
    """
    error = (float32.double() - float64).abs().max()
    return max(10 * float(error), 16 * FLOAT32 * float(float64.abs().max()))


def relative_error(found: Tensor, expected: Tensor) -> Tensor:
    """Return ||found - expected|| / ||expected|| of each image and step, [image, step]."""
    difference = (found.double() - expected.double()).flatten(2).norm(dim=2)
    return difference / expected.double().flatten(2).norm(dim=2)
