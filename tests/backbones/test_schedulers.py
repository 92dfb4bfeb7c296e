"""Models of flow matching, EDM and consistency, and all spacings, compared with diffusers."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from helpers.small_models import (
    assert_scores_do_not_depend_on_the_batch,
    edit_json,
    output,
    samples,
)

from diffguard_pl import Classifier, DiffGuard, InputError
from diffguard_pl.backbones import DiffusersPipeline
from diffguard_pl.backbones.schedulers import scheduler_alpha_bar, scheduler_schedule
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.diffusion.ddim import denoise, invert

LABELS = torch.tensor([0, 3])
FLOW = [
    FlowMatchEulerDiscreteScheduler(),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
]
SIGMAS = [
    EDMEulerScheduler(),
    EDMEulerScheduler(sigma_data=1.0, prediction_type="v_prediction", rho=5.0),
    EDMEulerScheduler(sigma_schedule="exponential", sigma_max=20.0),
    EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"),
    EulerDiscreteScheduler(use_karras_sigmas=True),
]


def unet(folder: Path, scheduler) -> UNet2DModel:
    """Save a small class-conditional pixel UNet of 4 classes with a scheduler."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        num_class_embeds=4,
    ).eval()
    network.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return network


def pipeline(folder: Path, **settings) -> DiffusersPipeline:
    return DiffusersPipeline(str(folder), clip_denoised=False, **settings)


def denoised(backbone: DiffusersPipeline, x, steps: int) -> list:
    """Return the states [n, C, h, w] of unit scale after each denoising step."""
    schedule, seen = backbone.schedule(steps), []
    start = torch.full((len(x),), len(schedule) - 1)

    def model(x, index, level, rows):
        return backbone.eps(x, schedule.timesteps[index], LABELS)

    denoise(model, x, schedule, start, lambda step: seen.append(step.x))
    return seen


def kind(scheduler) -> str:
    return type(scheduler).__name__


@pytest.mark.parametrize("scheduler", FLOW, ids=kind)
def test_denoising_is_the_euler_method_of_flow_matching(scheduler, tmp_path):
    scheduler, steps = copy.deepcopy(scheduler), 6
    network = unet(tmp_path, scheduler)
    backbone = pipeline(tmp_path, spacing="scheduler")
    x, _, _ = samples(0, 0, channels=3, size=16)
    scheduler.set_timesteps(steps)
    for ours, t, s in zip(
        denoised(backbone, x, steps), scheduler.timesteps, scheduler.sigmas[1:], strict=True
    ):
        x = scheduler.step(output(network, x, t, LABELS), t, x).prev_sample
        scale = (s**2 + (1 - s) ** 2).sqrt()
        # at s = 1 the signal level has diffusers' lower bound for betas
        assert (ours * scale - x).abs().max() < 2e-3 * x.abs().max()


@pytest.mark.parametrize("scheduler", SIGMAS, ids=kind)
def test_denoising_is_the_euler_method_in_sigma(scheduler, tmp_path):
    scheduler, steps = copy.deepcopy(scheduler), 6
    network = unet(tmp_path, scheduler)
    backbone = pipeline(tmp_path, spacing="scheduler")
    x, _, _ = samples(0, 0, channels=3, size=16)
    scheduler.set_timesteps(steps)
    first = scheduler.sigmas[0]
    theirs = x * (1 + first**2).sqrt()
    for ours, t, sigma in zip(
        denoised(backbone, x, steps), scheduler.timesteps, scheduler.sigmas[1:], strict=True
    ):
        given = scheduler.scale_model_input(theirs, t)
        theirs = scheduler.step(output(network, given, t, LABELS), t, theirs).prev_sample
        expected = theirs / (1 + sigma**2).sqrt()
        assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(timestep_spacing="trailing", clip_sample=False),
        PNDMScheduler(skip_prk_steps=True, steps_offset=1),
    ],
    ids=kind,
)
def test_timesteps_of_a_scheduler_without_sigmas(scheduler):
    alpha_bar = scheduler_alpha_bar(scheduler.config | {"_class_name": kind(scheduler)})
    config = dict(scheduler.config) | {"_class_name": kind(scheduler)}
    schedule = scheduler_schedule(config, alpha_bar, 10)
    scheduler.set_timesteps(10)
    assert schedule.timesteps.tolist() == sorted(set(scheduler.timesteps.tolist()))
    assert torch.equal(schedule.denoising_from, alpha_bar[schedule.timesteps])


def test_flow_sigmas_of_another_solver_are_flow_matching(tmp_path):
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    unet(tmp_path, scheduler)
    backbone = pipeline(tmp_path, spacing="scheduler")
    scheduler.set_timesteps(5)
    level = backbone.schedule(5).denoising_from
    ratio = ((1 - level) / level).sqrt()
    expected = (scheduler.sigmas[:-1] / (1 - scheduler.sigmas[:-1])).flip(0).double()
    torch.testing.assert_close(ratio[:-1], expected[:-1], rtol=1e-4, atol=0)
    assert expected[-1] > ratio[-1] == pytest.approx(2**12, rel=1e-3)  # the lowest signal level


def test_one_step_of_a_consistency_model(tmp_path):
    scheduler = CMStochasticIterativeScheduler()
    network = unet(tmp_path, scheduler)
    theirs = ConsistencyModelPipeline(network, scheduler)
    theirs.set_progress_bar_config(disable=True)
    noise, _, _ = samples(0, 0, channels=3, size=16)
    images = theirs(
        2, class_labels=LABELS, num_inference_steps=1, latents=noise, output_type="pt"
    ).images

    backbone = DiffusersPipeline(str(tmp_path))
    assert backbone.clip_denoised
    schedule = backbone.schedule(1)
    assert ((1 - schedule.denoising_from) / schedule.denoising_from).sqrt().item() == (
        pytest.approx(80)
    )
    with torch.no_grad():
        (x,) = denoised(backbone, noise, 1)
    # theirs begins with 80 noise, ours with that at unit scale, sqrt(1 + 80^2) noise
    assert ((x.clamp(-1, 1) + 1) / 2 - images).abs().max() < 2e-4


@pytest.mark.parametrize(
    "scheduler", [*FLOW[:1], SIGMAS[0], CMStochasticIterativeScheduler()], ids=kind
)
@pytest.mark.parametrize("spacing", ["uniform", "karras"])
def test_inversion_and_denoising_bring_the_image_back(scheduler, spacing, tmp_path):
    """For standard normal images the best noise is known: noise * x."""
    unet(tmp_path, scheduler)
    backbone = pipeline(tmp_path, spacing=spacing)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    errors = []
    for steps in (20, 100):
        schedule = backbone.schedule(steps)

        def model(x, index, level, rows, schedule=schedule):
            alpha_bar = schedule.denoising_from[index].view(-1, 1, 1, 1)
            return ((1 - alpha_bar).sqrt() * x).float()

        noise, stop = invert(model, images, schedule, len(schedule))
        back = denoise(model, noise, schedule, stop)
        errors.append(((back - images).norm() / images.norm()).item())
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.01


@pytest.mark.parametrize(
    ("scheduler", "settings", "steps"),
    [
        (FLOW[0], {"null_label": 3}, 4),
        (SIGMAS[0], {"null_label": 3, "spacing": "karras"}, 4),
        (CMStochasticIterativeScheduler(), {}, 2),
    ],
    ids=["flow", "edm", "consistency"],
)
def test_the_score_of_an_image_does_not_depend_on_the_batch(scheduler, settings, steps, tmp_path):
    unet(tmp_path, scheduler)
    backbone = DiffusersPipeline(str(tmp_path), **settings)
    torch.manual_seed(4)
    classifier = Classifier(SmallResNet(backbone.num_classes), input_size=16)
    guidance = (
        ClassifierFreeGuidance(2.0)
        if backbone.null_label
        else ClassifierGuidance(1.0, cutouts=2, cutout_size=8)
    )
    diffguard = DiffGuard(classifier, backbone, guidance, steps, ["l2"], slots=4)
    assert_scores_do_not_depend_on_the_batch(diffguard, 16)


def test_settings_that_do_not_fit_are_named(tmp_path):
    unet(tmp_path, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(InputError, match=r"prediction_type=epsilon: FlowMatch.*set it to null"):
        pipeline(tmp_path, prediction_type="epsilon")
    with pytest.raises(InputError, match=r"spacing 'linear'.*uniform, karras, scheduler"):
        pipeline(tmp_path, spacing="linear")
    edit_json(tmp_path / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    with pytest.raises(InputError, match=r"spacing=scheduler: FlowMatch.*set spacing to uniform"):
        pipeline(tmp_path, spacing="scheduler").schedule(4)
    unet(tmp_path, EDMEulerScheduler(sigma_min=3.0, sigma_max=2.0))
    with pytest.raises(InputError, match=r"sigma_min=3.0, sigma_max=2.0: must be"):
        pipeline(tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_train_timesteps": "abc"}, "num_train_timesteps must be a number above 0, not abc"),
        ({"num_train_timesteps": 1000.5}, "num_train_timesteps must be"),
        ({"num_train_timesteps": -5}, "num_train_timesteps must be"),
        ({"num_train_timesteps": 10**13}, "num_train_timesteps must be"),
        ({"beta_start": None}, "beta_start must be a number above 0, not None"),
        ({"beta_end": float("nan")}, "beta_end must be"),
        ({"beta_end": 2.0}, r"beta_end=2\.0: must be"),
        ({"trained_betas": "xx"}, "gives no noise levels"),
    ],
)
def test_a_damaged_scheduler_is_named(settings, named, tmp_path):
    unet(tmp_path, DDIMScheduler())
    edit_json(tmp_path / "scheduler" / "scheduler_config.json", **settings)
    with pytest.raises(InputError, match=named) as error:
        pipeline(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [{"rho": 0}, {"sigma_max": float("inf")}, {"sigma_data": 0}])
def test_a_damaged_scheduler_of_edm_is_named(settings, tmp_path):
    unet(tmp_path, EDMEulerScheduler())
    edit_json(tmp_path / "scheduler" / "scheduler_config.json", **settings)
    with pytest.raises(InputError, match=f"{next(iter(settings))} must be a number above 0"):
        pipeline(tmp_path)


def test_a_scheduler_gives_steps_in_range_or_says_so(tmp_path):
    unet(tmp_path, DDIMScheduler(steps_offset=1))
    backbone = pipeline(tmp_path, spacing="scheduler")
    for steps in (0, 1001):
        with pytest.raises(InputError, match=f"steps={steps}: must be 1 to 1000"):
            backbone.schedule(steps)
    assert backbone.schedule(1000).timesteps.max() < 1000
