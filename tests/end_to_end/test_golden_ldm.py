"""The latent-space pipeline is the original's.

In float64 no result depends on the machine, so the method is compared there: step by step with its
definition, and with the float32 data of the original. What float32 itself costs is bounded apart.
"""

from dataclasses import replace

import pytest
import torch
from helpers import definition
from helpers.golden import (
    FLOAT32,
    Golden,
    NFECounter,
    close,
    float32_limit,
    ldm_golden,
    trace,
    trace_of,
    unit,
    without_onednn,
)
from torch import Tensor

from diffguard_pl.diffusion.schedule import Schedule

RUNS = ["masked", "unmasked", "inverse_mask", "guided_inversion"]
NETWORK_ERROR = 64 * FLOAT32
"""Relative error of a network some 50 layers deep in float32."""
GOLDEN_ERROR = 128 * FLOAT32
"""Relative error of the diffusion model in the golden runs: their convolutions, with fewer products
(Winograd's), round off more than direct ones."""
SCORE_ERROR = 256 * FLOAT32
"""Absolute error of a score, the logits' of ten classes included."""


@pytest.fixture(autouse=True)
def one_algorithm():
    with without_onednn():
        yield


# ------------------------------------------------------- float64, against the definition


@pytest.mark.parametrize("run", RUNS)
def test_every_state_and_score_is_that_of_the_definition(run):
    golden, ours = ldm_golden(run, torch.float64), trace("ldm", run, torch.float64)
    backbone, settings = golden.diffguard.backbone, golden.settings
    model, first_stage = golden.diffguard.classifier.model, backbone.first_stage
    normalise = definition.at_imagenet_scale(lambda images: images)
    classifier = definition.at_imagenet_scale(model)

    def eps(x: Tensor, t: int, label: int) -> Tensor:
        context = backbone.embedding.weight[label][None, None]
        return backbone.unet(x, torch.tensor([t]), encoder_hidden_states=context).sample

    theirs = definition.LatentSpace(
        eps=eps,
        alpha_bar=backbone.alpha_bar,
        steps=settings["ddim_steps"],
        scale=settings["denoise_guidance_scale"],
        inversion_scale=0.0
        if settings["unconditional_diffuse"]
        else settings["diffuse_guidance_scale"],
        null=1000,
    )
    images, labels = golden.images[:2], golden.labels[:2].tolist()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        mask = None
        if settings["use_cam"]:
            cam = definition.grad_cam(
                lambda x: model.features(normalise(x)),
                lambda maps: model.classifier(maps).flatten(1),
                image[None],
                label,
            )
            mask = definition.semantic_mask(cam, settings["cam_cut"], 16)
            assert torch.equal(ours.mask[i].double(), mask[0])
        with torch.no_grad():
            latent = first_stage.encode(image[None] * 2 - 1).latents
            found = theirs.run(latent, label, mask)
            codes = definition.quantised(found.denoising[-1], first_stage.quantize.embedding.weight)
            recon = unit(first_stage.decode(codes, force_not_quantize=True).sample)
            scores = definition.scores(image[None], recon, classifier)
        for index in range(8):
            close(ours.inversion[i, index], found.inversion[index][0], 1e-9)
            close(ours.denoising[i, index], found.denoising[7 - index][0], 1e-9)
        close(ours.guided[i], recon[0], 1e-9)
        assert {name: float(ours.scores[name][i]) for name in ours.scores} == pytest.approx(
            {name: scores[name] for name in ours.scores}, abs=1e-9
        )


# ------------------------------------------------ float64, against the data of the original


def test_the_latents_are_those_of_the_original():
    exact, in_float32 = (
        golden.diffguard.backbone.encode(golden.images * 2 - 1)
        for golden in (ldm_golden("masked", torch.float64), ldm_golden("masked"))
    )
    close(ldm_golden("masked").tensors["latent"], exact, float32_limit(in_float32, exact))


@pytest.mark.parametrize("run", RUNS)
def test_every_step_from_the_golden_state(run):
    """What the network gives in the original's steps, worked out from two states that follow."""
    if "inversion_steps" in ldm_golden(run).tensors:
        assert (step_errors(run, torch.float64, inverting=True) < GOLDEN_ERROR).all()
    assert (step_errors(run, torch.float64, inverting=False) < GOLDEN_ERROR).all()


@pytest.mark.parametrize("run", ["masked", "inverse_mask"])
def test_activation_map_and_mask(run):
    golden = ldm_golden(run, torch.float64)
    prediction = golden.diffguard.classify(golden.images, golden.labels)
    if run == "masked":  # the original scales the map only when it cuts
        cam = golden.tensors["cam"]
        low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
        close(prediction.cam[:, 0], (cam - low) / (high - low + 1e-7), NETWORK_ERROR)
    for dtype in (torch.float64, torch.float32):
        mask = trace("ldm", run, dtype).mask
        assert torch.equal(mask.double(), golden.tensors["cam_mask_latent"])


@pytest.mark.parametrize("run", RUNS)
def test_free_running_states_and_reconstructions(run):
    golden, exact = ldm_golden(run), trace("ldm", run, torch.float64)
    erring = trace_of(with_errors(ldm_golden(run, torch.float64)))
    for phase in ("inversion", "denoising"):
        states = exact.states(phase)
        limit = 4 * float((erring.states(phase) - states).abs().max())
        if f"{phase}_steps" in golden.tensors:
            close(golden.tensors[f"{phase}_steps"], states, limit)
        close(trace("ldm", run, torch.float32).states(phase), states, limit)
    # where a latent lies between two codes of the quantiser, float32 may fall to the other one
    codes = golden.diffguard.backbone.first_stage.quantize.embedding.weight.double()
    ours = definition.nearest_codes(states[:, -1], codes)
    theirs = definition.nearest_codes(golden.tensors["denoise_steps"][:, -1].double(), codes)
    flips = (ours != theirs).flatten(1).sum(dim=1)
    assert flips.sum() <= 2  # of 768
    limit = float32_limit(
        trace("ldm", run, torch.float32).guided[flips == 0], exact.guided[flips == 0]
    )
    close(golden.reconstructions[0][flips == 0], exact.guided[flips == 0], limit)


@pytest.mark.parametrize("run", RUNS)
def test_decoding_the_golden_latents(run):
    exact, in_float32 = (
        unit(golden.diffguard.backbone.decode(golden.tensors["denoise_steps"][:, -1]))
        for golden in (ldm_golden(run, torch.float64), ldm_golden(run))
    )
    close(ldm_golden(run).reconstructions[0], exact, float32_limit(in_float32, exact))
    close(in_float32, exact, 256 * FLOAT32)


@pytest.mark.parametrize("run", RUNS)
def test_scores_of_the_golden_reconstructions(run):
    golden, exact = ldm_golden(run), ldm_golden(run, torch.float64).our_scores()
    in_float32 = golden.our_scores()
    for name, scores in golden.scores.items():
        limit = SCORE_ERROR * max(1, float(exact[name].abs().max()))
        close(scores, exact[name], limit)
        close(in_float32[name], exact[name], limit)


# ------------------------------------------------------------------------------------ float32


@pytest.mark.parametrize("run", ["masked", "guided_inversion"])
def test_a_float32_step_is_the_float64_step_but_for_rounding(run):
    ours, _ = network_outputs(run, torch.float32, inverting=False)
    exact, size = network_outputs(run, torch.float64, inverting=False)
    assert ((ours - exact).flatten(2).norm(dim=2) < NETWORK_ERROR * size).all()


def step_errors(run: str, dtype: torch.dtype, inverting: bool) -> Tensor:
    """Return the relative error of the original's eps in each step, [image, step].

    x' = a x + b eps, so that two states give the eps between them: after guidance, where it acts.
    """
    golden = ldm_golden(run, dtype)
    schedule, states = golden.diffguard.schedule, golden_states(golden, inverting)
    start, end = ends(schedule, inverting)
    eps, size = network_outputs(run, dtype, inverting)
    a = (end / start).sqrt()
    b = (1 - end).sqrt() - a * (1 - start).sqrt()
    a, b = (factor.view(1, -1, 1, 1, 1) for factor in (a, b))
    theirs = (states[:, 1:] - a * states[:, :-1]) / b
    # rounding of the states themselves counts 1/b times
    rounding = FLOAT32 * states[:, 1:].flatten(2).norm(dim=2) / b.abs().view(1, -1)
    error = (theirs - eps).flatten(2).norm(dim=2) - rounding
    return error / size


def golden_states(golden: Golden, inverting: bool) -> Tensor:
    """Return x before the first step and after each, [image, 1 + step, C, h, w]."""
    tensors = golden.tensors
    if inverting:
        first = ldm_golden("masked", golden.images.dtype).tensors["latent"]
        return torch.cat([first[:, None], tensors["inversion_steps"]], dim=1)
    first = tensors.get("xT")
    if first is None:  # kept of one of the runs that are inverted under no class
        first = ldm_golden("masked", golden.images.dtype).tensors["xT"]
    return torch.cat([first[:, None], tensors["denoise_steps"]], dim=1)


def ends(schedule: Schedule, inverting: bool) -> tuple[Tensor, Tensor]:
    """Return alpha-bar before and after each step, in the order of the steps."""
    if inverting:
        return schedule.inversion_from, schedule.inversion_to
    return schedule.denoising_from.flip(0), schedule.denoising_to.flip(0)


def network_outputs(run: str, dtype: torch.dtype, inverting: bool) -> tuple[Tensor, Tensor]:
    """Return our guided eps at each golden state [image, step, C, h, w], and its size.

    The size [image, step] is what an error is relative to: (1 - scale) eps_null + scale eps_label
    is the difference of two large terms, and keeps the errors of both.
    """
    golden = ldm_golden(run, dtype)
    backbone, settings = golden.diffguard.backbone, golden.settings
    scale = settings["denoise_guidance_scale"]
    if inverting:
        unconditional = settings["unconditional_diffuse"]
        scale = 0.0 if unconditional else settings["diffuse_guidance_scale"]
    timesteps = golden.diffguard.schedule.timesteps
    found, sizes = [], []
    for k, x in enumerate(golden_states(golden, inverting)[:, :-1].unbind(dim=1)):
        t = timesteps[k if inverting else len(timesteps) - 1 - k].expand(len(x))
        with torch.no_grad():
            eps = backbone.eps(x, t, torch.full_like(golden.labels, 1000))
            sizes.append((abs(1 - scale) + scale) * eps.flatten(1).norm(dim=1))
            if scale:
                steered = eps + scale * (backbone.eps(x, t, golden.labels) - eps)
                mask = golden.tensors.get("cam_mask_latent")
                inside = torch.ones_like(x) if inverting or mask is None else mask
                eps = torch.where(inside.bool(), steered, eps)
        found.append(eps)
    return torch.stack(found, dim=1), torch.stack(sizes, dim=1)


def with_errors(golden: Golden) -> Golden:
    """Make the diffusion model err by as much as float32 may, in directions that a seed picks."""
    backbone, generator = golden.diffguard.backbone, torch.Generator().manual_seed(0)
    eps = backbone.eps

    def erring(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        output = eps(x, t, labels)
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        return output + GOLDEN_ERROR * output.square().mean().sqrt() * noise

    backbone.eps = erring
    return golden


# ----------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(("run", "nfe"), [("masked", 72), ("guided_inversion", 96)])
def test_the_network_evaluates_nothing_twice(run, nfe):
    golden = ldm_golden(run)
    counter = NFECounter(golden.diffguard.backbone.unet)
    golden.diffguard(golden.images, golden.labels)
    assert counter.nfe == nfe


def test_an_unguided_reconstruction_costs_one_evaluation_a_step():
    golden = ldm_golden("masked")
    golden.diffguard.sampling = replace(golden.diffguard.sampling, compare_to="unguided")
    counter = NFECounter(golden.diffguard.backbone.unet)
    golden.diffguard(golden.images, golden.labels)
    assert counter.nfe == 72 + 24 - 3  # the first unguided step is part of the guided one
