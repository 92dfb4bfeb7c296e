"""The pixel-space pipeline is the original's.

In float64 no result depends on the machine, so the method is compared there: step by step with its
definition, and with the float32 data of the original. What float32 itself costs is bounded apart.
"""

from dataclasses import dataclass

import pytest
import torch
from helpers import definition
from helpers.golden import (
    FLOAT32,
    REFERENCE,
    Golden,
    NFECounter,
    close,
    float32_limit,
    gdm_golden,
    relative_error,
    trace,
    without_onednn,
)
from safetensors.torch import load_file
from torch import Tensor

from diffguard_pl.diffusion.ddim import Level, eps_from_x0, predict_x0, step
from diffguard_pl.diffusion.guidance import GuidingClassifier

RUNS = ["plain", "offset", "early_stop", "no_cutouts", "no_x0hat", "smooth", "smooth_early_stop"]
MAX_POOLED = ["plain", "offset", "early_stop", "no_cutouts", "no_x0hat"]
"""Runs whose classifier has max-pools: where two values nearly tie, float32 may pick the other one,
and the gradient jumps. A run in float32 then drifts apart from every other."""

NETWORK_ERROR = 64 * FLOAT32
"""Relative error of a network some 50 layers deep in float32."""
SCORE_ERROR = 256 * FLOAT32
"""Absolute error of a score, the logits' of ten classes included."""


@pytest.fixture(autouse=True)
def one_algorithm():
    with without_onednn():
        yield


# ------------------------------------------------------- float64, against the definition


@pytest.mark.parametrize("run", RUNS)
def test_every_state_and_score_is_that_of_the_definition(run):
    golden, ours = gdm_golden(run, torch.float64), trace("gdm", run, torch.float64)
    unet, settings = golden.diffguard.backbone.unet, golden.settings
    classifier = definition.at_imagenet_scale(golden.diffguard.classifier.model)
    theirs = definition.PixelSpace(
        eps=lambda x, t: unet(x, torch.tensor([t])).sample[:, :3],
        logits=classifier,
        steps=8,
        input_size=28,
        classifier_scale=settings["classifier_scale"],
        cutouts_num=settings["cutouts_num"],
        cutouts_size=settings["cutouts_size"],
        no_x0_hat=settings.get("no_x0_hat", False),
        early_stop_steps=settings["early_stop_steps"],
        skip_first_steps=settings["skip_first_steps"],
        psnr=settings["early_stop_thresh"][0] if settings["early_stop_metric"] else None,
        forback_skip_diff=settings["forback_skip_diff"],
        uncond_aux=settings["uncond_aux"],
    )
    images, labels = golden.images[:2], golden.labels[:2].tolist()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        with torch.no_grad():
            found = theirs.run(definition.resized(image[None] * 2 - 1, 32), label)
        assert ours.stop_index[i] == found.stop_index
        assert_states(ours.inversion, i, found.inversion, range(len(found.inversion)))
        indices = range(len(found.denoising))[::-1]
        assert_states(ours.denoising, i, found.denoising, indices)
        guided = unit_image(found.denoising[-1])
        close(ours.guided[i : i + 1], guided, 1e-9)
        reference = image[None]
        if settings["uncond_aux"]:
            assert ours.unguided is not None
            assert_states(ours.denoising_unguided, i, found.unguided, indices)
            reference = unit_image(found.unguided[-1])
            close(ours.unguided[i : i + 1], reference, 1e-9)
        with torch.no_grad():
            scores = definition.scores(reference, guided, classifier)
        assert {name: float(ours.scores[name][i]) for name in scores} == pytest.approx(
            scores, abs=1e-9
        )


def assert_states(
    ours: dict[tuple[int, int], Tensor], image: int, theirs: list[Tensor], indices: range
) -> None:
    """The steps that an image has taken, and only these."""
    assert {index for row, index in ours if row == image} == set(indices)
    for index, x in zip(indices, theirs, strict=True):
        close(ours[image, index], x[0], 1e-9)


def unit_image(x: Tensor) -> Tensor:
    return ((definition.resized(x, 28) + 1) / 2).clamp(0, 1)


# ------------------------------------------------ float64, against the data of the original


@pytest.mark.parametrize("run", ["plain", "smooth"])
def test_the_classifier_is_that_of_the_original(run):
    exact, in_float32 = (logits(gdm_golden(run, dtype)) for dtype in (torch.float64, torch.float32))
    assert_rounding(in_float32, exact)
    if run == "plain":
        assert_rounding(load_file(REFERENCE / "gdm_golden.safetensors")["logits"], exact)


@pytest.mark.parametrize("run", ["plain", "offset", "early_stop"])
def test_inversion_and_stop_indices(run):
    tensors = gdm_golden(run).tensors
    exact, in_float32 = (trace("gdm", run, dtype) for dtype in (torch.float64, torch.float32))
    close(tensors["xT"], exact.noise, float32_limit(in_float32.noise, exact.noise))
    assert exact.stop_index.tolist() == tensors["stop_index"].tolist()
    assert in_float32.stop_index.tolist() == tensors["stop_index"].tolist()
    if run == "plain":
        states = exact.states("inversion")
        limit = float32_limit(in_float32.states("inversion"), states)
        close(tensors["inversion_steps"], states, limit)


@pytest.mark.parametrize("run", ["plain", "no_cutouts", "smooth"])
def test_every_guidance_and_denoising_step_from_the_golden_state(run):
    exact = steps_from_the_golden_states(run, torch.float64)
    tensors = gdm_golden(run).tensors
    assert (relative_error(tensors["guidance"], exact.guidance) < NETWORK_ERROR).all()
    assert ((tensors["denoise_steps"] - exact.states).abs() < exact.limits).all()


@pytest.mark.parametrize("run", ["smooth", "smooth_early_stop"])
def test_a_free_running_smooth_reconstruction(run):
    golden = gdm_golden(run)
    exact, in_float32 = (trace("gdm", run, dtype) for dtype in (torch.float64, torch.float32))
    guided, unguided = golden.reconstructions
    close(guided, exact.guided, float32_limit(in_float32.guided, exact.guided))
    if unguided is not None:
        close(unguided, exact.unguided, float32_limit(in_float32.unguided, exact.unguided))
    theirs, ours, ours_in_float32 = stacked(golden.scores, exact.scores, in_float32.scores)
    close(theirs, ours, float32_limit(ours_in_float32, ours))


@pytest.mark.parametrize("run", MAX_POOLED)
def test_a_free_running_max_pooled_reconstruction_is_near_its_own_golden_run_alone(run):
    """The golden data drift by jumps of the pool, by less than a tenth of any other setting."""
    exact = trace("gdm", run, torch.float64).guided
    distances = {
        other: float((gdm_golden(other).reconstructions[0] - exact).norm()) for other in RUNS
    }
    own = distances.pop(run)
    assert 10 * own < min(distances.values())


@pytest.mark.parametrize("run", RUNS)
def test_scores_of_the_golden_reconstructions(run):
    golden, exact = gdm_golden(run), gdm_golden(run, torch.float64)
    theirs, ours, in_float32 = stacked(golden.scores, exact.our_scores(), golden.our_scores())
    close(theirs, ours, float32_limit(in_float32, ours))
    close(in_float32, ours, SCORE_ERROR)


# ------------------------------------------------------------------------------------ float32


def test_a_float32_step_is_the_float64_step_but_for_rounding():
    exact = steps_from_the_golden_states("smooth", torch.float64)
    in_float32 = steps_from_the_golden_states("smooth", torch.float32)
    assert (relative_error(in_float32.eps, exact.eps) < NETWORK_ERROR).all()
    assert (relative_error(in_float32.guidance, exact.guidance) < NETWORK_ERROR).all()
    assert ((in_float32.states - exact.states).abs() < exact.limits).all()


@dataclass
class Steps:
    """The denoising steps of a run, each from the original's state before it; [image, step, ...].

    Attributes:
        eps: Output of the diffusion model.
        guidance: Scaled gradient.
        states: x after the step, with the original's gradient.
        limits: How far float32 data may lie from these states.
    """

    eps: Tensor
    guidance: Tensor
    states: Tensor
    limits: Tensor


def steps_from_the_golden_states(run: str, dtype: torch.dtype) -> Steps:
    golden = gdm_golden(run, dtype)
    diffguard, guidance = golden.diffguard, golden.diffguard.guidance
    schedule = diffguard.schedule
    classifier = GuidingClassifier(diffguard.classifier.logits_at_any_size, 28)
    crops = guidance.crops(8, 32)
    # all three runs start from the same noise, that of "plain"
    noise = gdm_golden("plain", dtype).tensors["xT"]
    states = [noise, *golden.tensors["denoise_steps"].unbind(dim=1)]
    steps = []
    for k in range(8):
        x, index = states[k], torch.full((3,), 7 - k)
        level, to = (
            Level.of(ends[index], x) for ends in (schedule.denoising_from, schedule.denoising_to)
        )
        with torch.no_grad():
            eps = diffguard.backbone.eps(x, schedule.timesteps[index], golden.labels)
        x0 = predict_x0(x, eps, level)
        of_step = None if crops is None else crops[k].expand(3, -1, -1)
        gradient = guidance.gradient(x, x0, level, golden.labels, of_step, classifier)
        steered = eps_from_x0(x, x0.clamp(-1, 1), level)
        steered = steered - level.noise * golden.tensors["guidance"][:, k]
        # an error of eps counts to.signal / signal times, by way of x0
        limit = (x.abs().max() + steered.abs().max()) * to.signal / level.signal
        steps.append(
            (
                eps,
                guidance.scale * gradient,
                step(x, steered, level, to),
                NETWORK_ERROR / 4 * limit.expand_as(x),
            )
        )
    return Steps(*(torch.stack(parts, dim=1) for parts in zip(*steps, strict=True)))


def logits(golden: Golden) -> Tensor:
    with torch.no_grad():
        return golden.diffguard.classifier(golden.images)


def assert_rounding(found: Tensor, exact: Tensor) -> None:
    assert float((found.double() - exact).norm() / exact.norm()) < NETWORK_ERROR


def stacked(*scores: dict[str, Tensor]) -> list[Tensor]:
    """Return the scores [names, images] that all of them have."""
    return [torch.stack([each[name] for name in scores[0]]) for each in scores]


# ----------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(("run", "nfe"), [("plain", 48), ("no_cutouts", 48), ("early_stop", 57)])
def test_the_network_evaluates_nothing_twice(run, nfe):
    golden = gdm_golden(run)
    counter = NFECounter(golden.diffguard.backbone.unet)
    golden.diffguard(golden.images, golden.labels)
    assert counter.nfe == nfe


def test_nothing_is_differentiated_through_the_diffusion_network():
    golden = gdm_golden("plain")
    graphs = []
    golden.diffguard.backbone.unet.register_forward_hook(
        lambda module, inputs, output: graphs.append(output.sample.requires_grad)
    )
    with torch.enable_grad():
        golden.diffguard(golden.images, golden.labels)
    assert graphs
    assert not any(graphs)


def test_padding_keeps_the_image_and_compares_without_the_border():
    backbone = gdm_golden("plain").diffguard.backbone
    backbone.process_method = "pad"
    images = torch.rand(2, 3, 28, 28) * 2 - 1
    x = backbone.encode(images)
    assert x.shape == (2, 3, 32, 32)
    assert (x[:, :, :2] == -1).all()
    close(backbone.decode(x), images, 0)
    close(backbone.remove_padding(x), images, 0)
