"""Class-conditional pixel UNets: eps as their own code computes it, the null class, and misfits."""

from dataclasses import replace

import pytest
import torch
from helpers.originals import saved
from helpers.pixel_unets import ARCHITECTURES, LABELS, computed_by, golden, original

from diffguard_pl import Classifier, DiffGuard, InputError
from diffguard_pl.backbones import DDPMArchitecture, PixelDiffusion
from diffguard_pl.backbones.convert_ddpm import build_ddpm, ddpm_alpha_bar
from diffguard_pl.backbones.save_converted import save_converted
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.ddim import Level
from diffguard_pl.diffusion.guidance import GuidanceInputs, GuidingClassifier
from diffguard_pl.diffusion.schedule import cosine_alpha_bar, linear_alpha_bar

DDPM = ARCHITECTURES["diffnb_ddpm"]
UNUSED_CLASSIFIER = GuidingClassifier(torch.flatten, 16)
TOLERANCE = 1e-5
"""Largest relative difference of float32 computations of eps."""


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def ddpm_file(tmp_path_factory) -> str:
    """The small DDPM as DiffNB's code saves it."""
    return saved(golden("diffnb_ddpm")[0], tmp_path_factory.mktemp("ddpm") / "ema.ckpt")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_eps_is_that_of_the_original_under_every_label_and_without(name, tmp_path):
    weights, numbers = golden(name)
    backbone = PixelDiffusion(saved(weights, tmp_path / "model.pt"), ARCHITECTURES[name])
    eps = backbone.eps(numbers["x"], numbers["t"], numbers["labels"])
    for found, expected in zip(eps, numbers["eps"], strict=True):
        assert relative_difference(found, expected) < TOLERANCE
    # the label matters far more than rounding
    other = backbone.eps(numbers["x"], numbers["t"], numbers["labels"].flip(0))
    assert relative_difference(other, numbers["eps"]) > 1000 * TOLERANCE

    has_null_class = name.startswith("diffnb")
    assert backbone.num_classes == (LABELS - 1 if has_null_class else LABELS)
    assert backbone.null_label == (LABELS - 1 if has_null_class else None)


@pytest.mark.parametrize("name", ["diffnb_ddpm", "diffnb_iddpm"])
def test_guidance_in_pixel_space_is_that_of_diffnb(name, tmp_path):
    weights, numbers = golden(name)
    backbone = PixelDiffusion(saved(weights, tmp_path / "model.pt"), ARCHITECTURES[name])
    count, beta = LABELS - 1, 2.0
    x, t = numbers["x"][:count], numbers["t"][:count]
    inputs = GuidanceInputs(
        network_labels=torch.full((count,), backbone.null_label),
        labels=numbers["labels"][:count],
        scale=torch.full((count, 1, 1, 1), 1 + beta),
    )
    eps = (
        ClassifierFreeGuidance()
        .predict_eps(
            backbone.eps, x, t, Level.of(backbone.alpha_bar[t], x), inputs, UNUSED_CLASSIFIER
        )
        .eps
    )
    # (1 + beta) eps(x, y) - beta eps(x, null), as its sampler has it
    expected = (1 + beta) * numbers["eps"][:count] - beta * numbers["eps_null"][:count]
    assert relative_difference(eps, expected) < TOLERANCE


def test_an_image_is_scored_alike_whatever_the_batch_and_as_in_plain_loops(ddpm_file):
    torch.manual_seed(0)
    diffguard = DiffGuard(
        Classifier(SmallResNet(3), input_size=16),
        PixelDiffusion(ddpm_file, DDPM),
        ClassifierFreeGuidance(scale=10.0, cam_cut=0.3),
        steps=4,
        discrepancies=["logits", "l2"],
        slots=3,
    ).double()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    together = diffguard(images)
    for i in range(2):
        alone = diffguard(images[i : i + 1])
        for name in ("logits", "l2"):
            score = alone.scores[name]
            torch.testing.assert_close(together.scores[name][i : i + 1], score, atol=1e-9, rtol=0)
    prediction = diffguard.classify(images)
    recon = diffguard.reconstruct(diffguard.invert(images, prediction), prediction)
    torch.testing.assert_close(together.reconstructions, recon.guided, atol=1e-9, rtol=0)
    # the paper's distance on CIFAR-10
    logits = diffguard.classifier.view(recon.guided).logits
    distance = (prediction.view.logits - logits).abs().sum(dim=1)
    torch.testing.assert_close(together.scores["logits"], -distance, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_golden_files_are_what_the_original_computes(name):
    try:
        module = original(name)
    except ImportError:
        pytest.skip("the originals are on no registry; golden files stand in for them")
    expected = golden(name)[1]
    for key, found in computed_by(module, name).items():
        torch.testing.assert_close(found, expected[key], atol=1e-5, rtol=1e-5)


def test_a_file_of_diffnb_needs_no_settings():
    unet = build_ddpm(DDPMArchitecture())
    # as in DiffNB's code for ddim_cifar10_cond; the class embedding has 11 x 512 of them
    assert sum(parameter.numel() for parameter in unet.parameters()) == 35_751_939


def test_a_ddpm_without_labels_takes_none(tmp_path):
    weights, numbers = golden("diffnb_ddpm")
    unlabelled = {key: tensor for key, tensor in weights.items() if key != "label_emb.weight"}
    backbone = PixelDiffusion(
        saved({"model": unlabelled}, tmp_path / "model.ckpt"), replace(DDPM, num_classes=0)
    )
    assert (backbone.num_classes, backbone.null_label) == (None, None)
    assert backbone.eps(numbers["x"], numbers["t"], numbers["labels"]).isfinite().all()


def test_a_converted_copy_predicts_the_same_and_keeps_its_null_class(ddpm_file, tmp_path):
    settings = tmp_path / "architecture.yaml"
    settings.write_text(
        "image_size: 16\nch: 32\nch_mult: [1, 2]\nnum_res_blocks: 1\n"
        "attn_resolutions: [8]\nnum_classes: 3\nbeta_schedule: quad\n"
    )
    folder = save_converted(ddpm_file, tmp_path / "copy", settings)
    first, copy = PixelDiffusion(ddpm_file, DDPM), PixelDiffusion(str(folder))
    numbers = golden("diffnb_ddpm")[1]
    inputs = numbers["x"], numbers["t"], numbers["labels"]
    assert torch.equal(copy.eps(*inputs), first.eps(*inputs))
    assert (copy.null_label, copy.num_classes) == (3, 3)
    assert torch.equal(copy.alpha_bar, ddpm_alpha_bar(replace(DDPM, beta_schedule="quad")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ch": 64}, r"temb.dense.0.weight is \[128, 32\], expected \[256, 64\].*architecture.ch"),
        ({"num_classes": 10}, r"label_emb.weight is \[4, 128\], expected \[11, 128\].*num_classes"),
        ({"num_classes": 0}, r"label_emb.weight \[4, 128\] is unexpected.*num_classes"),
        ({"attn_resolutions": (16, 8)}, r"attentions.*attn_resolutions"),
        ({"ch_mult": (1, 1)}, r"down.1.block.0.*ch_mult"),
        ({"num_res_blocks": 2}, r"num_res_blocks"),
        ({"beta_schedule": "sigmoid"}, r"beta_schedule.*linear, quad, cosine"),
        ({"beta_end": 2.0}, r"beta_end=2.0.*beta_start <="),
    ],
)
def test_a_ddpm_of_another_architecture_names_key_and_setting(settings, said, ddpm_file):
    with pytest.raises(InputError, match=said) as error:
        PixelDiffusion(ddpm_file, replace(DDPM, **settings))
    assert "\n" not in str(error.value)


def test_without_settings_the_layout_of_the_keys_decides(ddpm_file):
    # the defaults of a DDPM, not those of guided-diffusion
    with pytest.raises(InputError, match=r"temb.dense.0.weight is \[128, 32\], .* \[512, 128\]"):
        PixelDiffusion(ddpm_file)
    with pytest.raises(InputError, match=r"keys of DDPM.*backbone.architecture.*ch_mult"):
        PixelDiffusion(ddpm_file, ARCHITECTURES["guided_diffusion"])


def test_the_noise_schedules_of_ddpm():
    alpha_bar = ddpm_alpha_bar(DDPM)
    torch.testing.assert_close(alpha_bar, linear_alpha_bar(), atol=0, rtol=1e-12)
    # betas are not rescaled in a training of another length
    short = ddpm_alpha_bar(replace(DDPM, num_diffusion_timesteps=100))
    assert short[0] == alpha_bar[0]
    cosine = ddpm_alpha_bar(replace(DDPM, beta_schedule="cosine"))
    assert torch.equal(cosine, cosine_alpha_bar())
