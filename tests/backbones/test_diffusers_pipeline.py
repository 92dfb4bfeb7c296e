"""DiffusersPipeline, compared with diffusers itself."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from helpers.small_models import autoencoder, ddim, dit, edit_json, output, samples
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffguard_pl import Classifier, DiffGuard, InputError
from diffguard_pl.backbones import DiffusersPipeline, LatentDiffusion
from diffguard_pl.backbones.schedulers import scheduler_alpha_bar
from diffguard_pl.checkpoints.registry import resolve
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.diffusion.ddim import denoise, invert
from diffguard_pl.diffusion.guidance import GuidanceInputs

PIXEL = {
    "sample_size": 16,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 16,
}
PIXEL |= {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def save_pixel(folder: Path, scheduler=None, **settings) -> UNet2DModel:
    torch.manual_seed(0)
    unet = UNet2DModel(**PIXEL | settings).eval()
    unet.save_pretrained(folder / "unet")
    (scheduler or ddim()).save_pretrained(folder / "scheduler")
    return unet


SCHEDULERS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 400, "beta_end": 0.04},
    {"trained_betas": [0.001 * k for k in range(1, 101)]},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
]


def test_a_flat_repository_of_a_pixel_model_as_ddpm_cifar10(tmp_path):
    unet = save_pixel(tmp_path / "source", DDPMScheduler(), attention_head_dim=None)
    for file in (*(tmp_path / "source/unet").iterdir(), *(tmp_path / "source/scheduler").iterdir()):
        shutil.copy(file, tmp_path)
    backbone = DiffusersPipeline(str(tmp_path), input_size=14, process_method="pad")
    x, t, y = samples(0, 999, channels=3, size=16)
    torch.testing.assert_close(backbone.eps(x, t, y), output(unet, x, t))
    assert (backbone.is_pixel_space, backbone.clip_denoised, backbone.image_size) == (
        True,
        True,
        16,
    )
    assert (backbone.null_label, backbone.num_classes) == (None, None)
    images = torch.rand(2, 3, 14, 14) * 2 - 1
    assert torch.equal(backbone.decode(backbone.encode(images)), images)

    paper = DiffusersPipeline(str(tmp_path), input_size=14, antialias=False)
    assert torch.equal(paper.decode(x), interpolate(x, (14, 14), mode="bilinear"))


def test_eps_is_the_networks_first_channels_and_null_is_a_class_of_its_own(folder, pipeline):
    backbone = DiffusersPipeline(str(folder))
    x, t, y = samples(0, 999, 1000)
    eps = backbone.eps(x, t, y)
    torch.testing.assert_close(eps, output(pipeline.transformer, x, t, y)[:, :4])
    assert eps.dtype == torch.float32
    assert (
        backbone.null_label,
        backbone.num_classes,
        backbone.is_pixel_space,
        backbone.clip_denoised,
    ) == (
        1000,
        1000,
        False,
        False,
    )
    same = backbone.eps(x[:1].expand(3, -1, -1, -1), t[:1].expand(3), y)
    assert (same[2] - same[:2]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_labels_are_never_dropped(folder):
    backbone = DiffusersPipeline(str(folder))
    x, t, y = samples(*[5] * 64)
    x, t = x[:1].expand(64, -1, -1, -1), t[:1].expand(64)
    torch.testing.assert_close(
        backbone.eps(x, t, y), backbone.eps(x[:1], t[:1], y[:1]).expand(64, -1, -1, -1)
    )
    assert not any(module.training for module in backbone.network.modules())


def test_latents_are_the_mode_shifted_and_scaled_and_come_back(copy):
    edit_json(copy / "vae" / "config.json", shift_factor=0.1, scaling_factor=0.5)
    backbone, vae = DiffusersPipeline(str(copy), input_size=20), autoencoder()
    assert backbone.image_size == 16
    images = torch.rand(2, 3, 20, 20) * 2 - 1
    with torch.no_grad():
        mode = vae.encode(backbone.to_model_size(images)).latent_dist.mode()
        expected = backbone.to_input_size(vae.decode(mode).sample.clamp(-1, 1))
    x = backbone.encode(images)
    torch.testing.assert_close(x, (mode - 0.1) * 0.5)
    assert torch.equal(x, backbone.encode(images))
    torch.testing.assert_close(backbone.decode(x), expected, atol=1e-5, rtol=1e-5)


def test_guided_denoising_step_by_step_as_the_dit_pipeline(folder, pipeline, monkeypatch):
    steps, scale, labels = 5, 4.0, [207, 3]
    theirs = []

    def recorded(*inputs, **settings):
        result = step(*inputs, **settings)
        theirs.append(result.prev_sample[:2])
        return result

    step = pipeline.scheduler.step
    monkeypatch.setattr(pipeline.scheduler, "step", recorded)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2)
    images = pipeline(labels, scale, generator, steps, output_type="pt").images

    backbone = DiffusersPipeline(str(folder))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    schedule, ours = backbone.schedule(steps), []
    wanted = GuidanceInputs(
        torch.full((2,), backbone.null_label), torch.tensor(labels), torch.full((2, 1, 1, 1), scale)
    )

    def model(x, index, level, rows):
        return (
            ClassifierFreeGuidance(scale)
            .predict_eps(backbone.eps, x, schedule.timesteps[index], level, wanted, classifier=None)
            .eps
        )

    assert schedule.timesteps.tolist() == sorted(pipeline.scheduler.timesteps.tolist())
    with torch.no_grad():
        x = denoise(
            model, noise, schedule, torch.full((2,), steps - 1), lambda taken: ours.append(taken.x)
        )
        assert len(ours) == len(theirs) == steps
        for x_ours, x_theirs in zip(ours, theirs, strict=True):
            assert (x_ours - x_theirs).abs().max() < 1e-5 * x_theirs.abs().max()
        torch.testing.assert_close((backbone.decode(x) + 1) / 2, images, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings", SCHEDULERS, ids=lambda settings: ",".join(settings) or "linear"
)
def test_noise_levels_are_diffusers(settings):
    scheduler = DDIMScheduler(**settings)
    alpha_bar = scheduler_alpha_bar(scheduler.config)
    assert alpha_bar.dtype == torch.float64
    assert (alpha_bar - scheduler.alphas_cumprod).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_step_of_each_prediction_type_is_diffusers(kind, tmp_path):
    scheduler = ddim(prediction_type=kind, rescale_betas_zero_snr=True)
    unet = save_pixel(tmp_path, scheduler, num_class_embeds=4)
    backbone = DiffusersPipeline(str(tmp_path), null_label=3, clip_denoised=False)
    assert backbone.num_classes == 3
    x, _, y = samples(0, 2, channels=3, size=16)
    scheduler.set_timesteps(8)
    schedule = backbone.schedule(8)
    seen = []
    model = lambda x, index, level, rows: backbone.eps(x, schedule.timesteps[index], y)  # noqa: E731
    denoise(model, x, schedule, torch.tensor([7, 7]), lambda step: seen.append(step.x))
    for t, ours in zip(scheduler.timesteps, seen, strict=True):
        x = scheduler.step(output(unet, x, t, y), t, x).prev_sample
        assert (ours - x).abs().max() < 1e-4 * x.abs().max()
        x = ours


class Predicts(nn.Module):
    """A network that converts a given noise to another prediction type: x0 or velocity."""

    def __init__(self, eps, kind: str, alpha_bar: Tensor):
        super().__init__()
        self.eps, self.kind, self.scheduler = (
            eps,
            kind,
            DDIMScheduler(trained_betas=(1 - alpha_bar / _before(alpha_bar)).tolist()),
        )

    def forward(self, x: Tensor, t: Tensor, **condition):
        eps, x = self.eps(x, t), x.double()
        level = self.scheduler.alphas_cumprod[t].double().view(-1, 1, 1, 1)
        x0 = (x - (1 - level).sqrt() * eps) / level.sqrt()
        said = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": level.sqrt() * eps - (1 - level).sqrt() * x0,
        }
        return type("Output", (), {"sample": said[self.kind].float()})


def _before(alpha_bar: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])


@pytest.fixture
def speaking(tmp_path):
    """Builds a pixel backbone whose network predicts a given noise as a prediction type."""
    save_pixel(tmp_path)

    def make(kind: str, eps) -> DiffusersPipeline:
        backbone = DiffusersPipeline(str(tmp_path), prediction_type=kind, clip_denoised=False)
        backbone.network = Predicts(eps, kind, backbone.alpha_bar)
        return backbone

    return make


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_the_same_noise_in_other_words_is_the_same_noise(kind, speaking):
    x, t, y = samples(0, 0, 0, 0, 0, channels=3, size=16)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    found = speaking(kind, lambda x, t: eps.double()).eps(x, t, y)
    assert ((found - eps).norm() / eps.norm()).item() < 1e-5


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_inversion_and_denoising_bring_the_image_back(kind, speaking):
    """For standard normal images the best noise is known: sqrt(1 - alpha-bar) x."""
    alpha_bar = speaking(kind, None).alpha_bar
    backbone = speaking(kind, lambda x, t: (1 - alpha_bar[t]).sqrt().view(-1, 1, 1, 1) * x.double())
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    errors = []
    for steps in (20, 100):
        schedule = backbone.schedule(steps)
        model = lambda x, index, level, rows, t=schedule.timesteps: backbone.eps(  # noqa: E731
            x, t[index], torch.zeros_like(index)
        )
        noise, stop = invert(model, images, schedule, len(schedule))
        errors.append(
            ((denoise(model, noise, schedule, stop) - images).norm() / images.norm()).item()
        )
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.002


def test_constant_noise_is_undone_exactly(speaking):
    eps = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(7)).double()
    backbone = speaking("epsilon", lambda x, t: eps.expand(len(x), -1, -1, -1))
    images, schedule = torch.rand(2, 3, 16, 16) * 2 - 1, backbone.schedule(25)
    model = lambda x, index, level, rows: backbone.eps(  # noqa: E731
        x, schedule.timesteps[index], torch.zeros_like(index)
    )
    noise, stop = invert(model, images, schedule, 25)
    assert (noise - images).abs().max() > 0.5
    torch.testing.assert_close(denoise(model, noise, schedule, stop), images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_where_there_is_no_signal_and_where_there_is_no_noise(kind, tmp_path):
    betas = [0.0, *[0.02] * 98, 1.0]
    save_pixel(tmp_path, ddim(prediction_type=kind, trained_betas=betas))
    backbone = DiffusersPipeline(str(tmp_path))
    x, _, y = samples(0, 0, channels=3, size=16)
    assert backbone.eps(x, torch.tensor([0, 99]), y).isfinite().all()
    schedule = backbone.schedule(50)
    assert schedule.timesteps[-1] == 99
    assert (
        denoise(
            lambda x, t, level, rows: backbone.eps(x, t, y), x, schedule, torch.tensor([49, 49])
        )
        .isfinite()
        .all()
    )


def test_a_detector_with_dit_gives_each_image_its_score_whatever_the_batch(folder):
    torch.manual_seed(4)
    classifier = Classifier(SmallResNet(10), input_size=16)
    detector = DiffGuard(
        classifier,
        DiffusersPipeline(str(folder)),
        ClassifierFreeGuidance(2.0),
        5,
        ["l2", "logits", "ssim"],
    )
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    together = detector(images)
    assert together.reconstructions.shape == images.shape
    for i, image in enumerate(images):
        alone = detector(image[None])
        for name, scores in together.scores.items():
            torch.testing.assert_close(alone.scores[name][0], scores[i], atol=1e-4, rtol=1e-4)
    other = detector(images, (together.labels + 1) % 10)
    assert (other.reconstructions - together.reconstructions).abs().max() > 1e-3


def test_a_detector_with_an_unconditional_pixel_model_is_steered_by_the_classifier(tmp_path):
    save_pixel(tmp_path)
    classifier = Classifier(SmallResNet(10), input_size=16)
    guidance = ClassifierGuidance(cutouts=2, cutout_size=12)
    detector = DiffGuard(
        classifier, DiffusersPipeline(str(tmp_path)), guidance, 5, ["l2"], compare_to="unguided"
    )
    detection = detector(torch.rand(2, 3, 16, 16))
    assert (detection.reconstructions != detection.unguided).any()
    with pytest.raises(InputError, match="does not support DiffusersPipeline"):
        DiffGuard(classifier, detector.backbone, ClassifierFreeGuidance(), 5, ["l2"])


def test_a_folder_with_a_class_embedding_is_the_latent_diffusion_model(tmp_path):
    folder = shutil.copytree(resolve("digits_ldm"), tmp_path / "digits")
    ddim(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195).save_pretrained(
        folder / "scheduler"
    )
    ours, theirs = DiffusersPipeline(str(folder)), LatentDiffusion("digits_ldm")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(ours.encode(images), theirs.encode(images))
    assert torch.equal(ours.decode(ours.encode(images)), theirs.decode(theirs.encode(images)))
    x, t, y = samples(0, 8, channels=3)
    assert torch.equal(ours.eps(x, t, y), theirs.eps(x, t, y))
    torch.testing.assert_close(ours.alpha_bar, theirs.alpha_bar)
    assert (ours.null_label, ours.num_classes) == (theirs.null_label, theirs.null_label)


def test_a_condition_unet_that_takes_class_labels_alone(tmp_path):
    plain = {
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "mid_block_type": "UNetMidBlock2D",
    }
    settings = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (32, 32),
        "num_class_embeds": 5,
    }
    unet = UNet2DConditionModel(**plain, **settings).eval()
    unet.save_pretrained(tmp_path / "unet")
    ddim().save_pretrained(tmp_path / "scheduler")
    x, t, y = samples(0, 4, channels=3, size=16)
    with torch.no_grad():
        expected = unet(x, t, encoder_hidden_states=None, class_labels=y).sample
    torch.testing.assert_close(DiffusersPipeline(str(tmp_path)).eps(x, t, y), expected)


def test_the_config_of_the_published_dit_is_read(copy):
    """facebook/DiT-XL-2-256 calls its network Transformer2DModel, with settings of that class."""
    config = copy / "transformer" / "config.json"
    edit_json(config, _class_name="Transformer2DModel", num_vector_embeds=None)
    assert json.loads(config.read_text())["norm_type"] == "ada_norm_zero"
    backbone = DiffusersPipeline(str(copy))
    assert isinstance(backbone.network, DiTTransformer2DModel)
    # 8 x 8 latents of an autoencoder that halves the resolution
    assert (backbone.image_size, backbone.null_label, backbone.num_classes) == (16, 1000, 1000)


def test_parts_that_are_missing_are_named(copy):
    shutil.rmtree(copy / "vae")
    with pytest.raises(
        InputError,
        match=r"latent .*4 channels.*missing folder vae/ or vqvae/",
    ):
        DiffusersPipeline(str(copy))
    shutil.rmtree(copy / "scheduler")
    autoencoder().save_pretrained(copy / "vae")
    with pytest.raises(InputError, match=r"scheduler_config.json: missing"):
        DiffusersPipeline(str(copy))
    shutil.rmtree(copy / "transformer")
    with pytest.raises(InputError, match=r"transformer/config.json or unet/config.json not found"):
        DiffusersPipeline(str(copy))


def test_an_autoencoder_that_the_index_names_is_missed_where_latents_look_like_images(tmp_path):
    save_pixel(tmp_path)
    DiffusersPipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]})
    )
    with pytest.raises(InputError, match="without its autoencoder"):
        DiffusersPipeline(str(tmp_path))


def test_an_autoencoder_of_other_latents(copy):
    shutil.rmtree(copy / "vae")
    autoencoder(latent_channels=3).save_pretrained(copy / "vae")
    with pytest.raises(InputError, match=r"vae: .*3 channels.*4; choose"):
        DiffusersPipeline(str(copy))


@pytest.mark.parametrize(
    ("file", "settings", "said"),
    [
        (
            "transformer/config.json",
            {"_class_name": "PixArtTransformer2DModel"},
            "config.json must be .*DiT.* or UNet2DModel or UNet2DCondition.*PixArt",
        ),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "noise"},
            "'noise'.*epsilon, sample, v_pred",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "VQDiffusionScheduler", "beta_schedule": None},
            "VQDiffusionScheduler has no betas.*scaled_linear",
        ),
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "sigmoid"},
            "unknown beta_schedule 'sigmoid'; choose from: linear, scaled",
        ),
        (
            "transformer/config.json",
            {"sample_size": None},
            "diffusers cannot build a DiTTransformer2DModel",
        ),
    ],
)
def test_an_unsupported_pipeline_is_refused_in_one_line(file, settings, said, copy):
    edit_json(copy / file, **settings)
    with pytest.raises(InputError, match=said) as error:
        DiffusersPipeline(str(copy))
    assert "\n" not in str(error.value)


def test_sample_size_is_one_number_of_pixels(tmp_path):
    save_pixel(tmp_path, sample_size=[16, 16])
    assert DiffusersPipeline(str(tmp_path)).image_size == 16
    edit_json(tmp_path / "unet" / "config.json", sample_size=[16, 32])
    with pytest.raises(InputError, match=r"sample_size .*one number of pixels, not \[16, 32\]"):
        DiffusersPipeline(str(tmp_path))


def test_a_model_with_other_conditions_than_a_class_is_refused(tmp_path):
    text = {
        "block_out_channels": (32, 32),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "cross_attention_dim": 8,
    }
    UNet2DConditionModel(
        **text, up_block_types=("CrossAttnUpBlock2D",) * 2, sample_size=8
    ).save_pretrained(tmp_path / "unet")
    with pytest.raises(
        InputError,
        match=r"UNet2DConditionModel .*not supported; choose .*DiTTransformer2DModel",
    ):
        DiffusersPipeline(str(tmp_path))
    shutil.rmtree(tmp_path / "unet")
    save_pixel(tmp_path, class_embed_type="timestep")
    with pytest.raises(InputError, match=r"UNet2DModel .*not supported"):
        DiffusersPipeline(str(tmp_path))


def test_labels_that_the_network_does_not_know(copy, tmp_path):
    shutil.rmtree(copy / "transformer")
    dit(num_embeds_ada_norm=10).save_pretrained(copy / "transformer")
    backbone = DiffusersPipeline(str(copy))
    backbone.eps(*samples(0, 10))
    for label in (207, 11, -1):
        with pytest.raises(InputError, match=rf"label {label} is unknown.*10 classes"):
            backbone.eps(*samples(3, label))
    with pytest.raises(InputError, match=r"null_label: 11 is unknown.*11 labels"):
        DiffusersPipeline(str(copy), null_label=11)
    save_pixel(tmp_path)
    with pytest.raises(InputError, match=r"null_label: 0 is unknown.*no labels"):
        DiffusersPipeline(str(tmp_path), null_label=0)
