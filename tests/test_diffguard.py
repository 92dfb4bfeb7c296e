"""DiffGuard composed of its parts: what goes in, what comes out, and which parts fit together."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.golden import (
    GDM_ARCHITECTURE,
    REFERENCE,
    NFECounter,
    gdm_golden,
    ldm_golden,
    squeezenet,
)
from helpers.originals import original_state, saved
from helpers.streams import cheap_diffguard
from torch import nn

import diffguard_pl
from diffguard_pl import Classifier, DiffGuard, InputError
from diffguard_pl.backbones import PixelDiffusion
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.digits import digits
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance


def gdm(backbone: PixelDiffusion, **settings) -> DiffGuard:
    classifier = Classifier(squeezenet(), input_size=28)
    guidance = ClassifierGuidance(cutouts=2, cutout_size=24)
    return DiffGuard(classifier, backbone, guidance, 8, ["l2", "features"], **settings)


@pytest.fixture
def backbone() -> PixelDiffusion:
    return PixelDiffusion(str(REFERENCE / "gdm_unet.pt"), GDM_ARCHITECTURE, input_size=28)


# ----------------------------------------------------------------------------- reconstructions


def test_oracle_labels_replace_predicted_ones_unless_negative(digits_ldm):
    images = digits("test").images[:4]
    predicted = digits_ldm(images).labels
    labels = digits_ldm(images, torch.tensor([2, 3, -1, 5])).labels
    assert labels.tolist() == [2, 3, int(predicted[2]), 5]


def test_reconstructing_under_each_label_moves_towards_it():
    golden = gdm_golden("smooth")
    diffguard, images = golden.diffguard, golden.images
    images = images[:1].expand(4, -1, -1, -1)
    labels = torch.tensor([0, 3, 6, 9])
    weak = diffguard(images, labels)
    diffguard.guidance.scale = 30.0
    strong = diffguard(images, labels)

    def log_p(reconstructions: torch.Tensor) -> torch.Tensor:
        logits = diffguard.classifier(reconstructions)
        return logits.log_softmax(1).gather(1, labels[:, None])[:, 0]

    assert (log_p(strong.reconstructions) > log_p(weak.reconstructions)).all()


def test_a_class_conditional_pixel_model_gets_the_label_and_the_classifier_guides(tmp_path):
    architecture = replace(GDM_ARCHITECTURE, class_cond=True, num_classes=10)
    path = saved(original_state(architecture), tmp_path / "model.pt")
    diffguard = gdm(PixelDiffusion(path, architecture, input_size=28), compare_to="unguided")
    images = torch.rand(2, 3, 28, 28)
    one, other = (diffguard(images, torch.tensor(labels)) for labels in ([1, 1], [1, 5]))
    torch.testing.assert_close(one.reconstructions[0], other.reconstructions[0], atol=1e-4, rtol=0)
    assert not torch.allclose(one.reconstructions[1], other.reconstructions[1], atol=1e-3)
    assert (one.reconstructions != one.unguided).any()


def test_images_of_one_batch_stop_early_independently(backbone):
    images = torch.stack(
        [torch.full((3, 28, 28), 0.5), torch.rand(3, 28, 28), torch.ones(3, 28, 28)]
    )
    settings = {"early_stop": {"psnr": 48.0}, "forback_skip_diff": 2, "compare_to": "unguided"}
    diffguard = gdm(backbone, **settings)
    together = diffguard(images)
    alone = [diffguard(image[None]) for image in images]
    assert len(set(together.stop_index.tolist())) > 1
    assert together.stop_index.tolist() == [int(d.stop_index) for d in alone]
    unguided = torch.cat([d.unguided for d in alone])
    torch.testing.assert_close(together.unguided, unguided, atol=1e-3, rtol=0)

    # The first step without guidance is part of that with it.
    counter = NFECounter(backbone.unet)
    stops = diffguard(images).stop_index
    inverted, denoised = (stops + 1).sum(), (stops + 2).clamp(max=8).sum()
    assert counter.nfe == inverted + 2 * denoised - 3


def test_padded_images_come_back_without_their_border():
    padded = PixelDiffusion(
        str(REFERENCE / "gdm_unet.pt"), GDM_ARCHITECTURE, input_size=28, process_method="pad"
    )
    images = torch.rand(2, 3, 28, 28)
    diffguard = gdm(padded, early_stop={"psnr": 48.0}, forback_skip_diff=1)
    diffguard.guidance.scale = 0.0
    detection = diffguard(images)
    assert detection.reconstructions.shape == images.shape
    # Without guidance the way back ends near the images.
    error = (detection.reconstructions - images).abs().mean()
    assert error < (detection.reconstructions.flip(-1) - images).abs().mean()


def test_scale_one_without_a_mask_takes_one_network_evaluation_a_step():
    golden = ldm_golden("unmasked")
    golden.diffguard.guidance.scale = 1.0
    counter = NFECounter(golden.diffguard.backbone.unet)
    golden.diffguard(golden.images)
    assert counter.nfe == 3 * 8 * 2


# -------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (torch.rand(2, 3, 32, 32), r"images: must be .*got \[2, 3, 32, 32\]"),
        (torch.rand(3, 16, 16), r"images: must be .*got \[3, 16, 16\]"),
        (torch.rand(0, 3, 16, 16), r"images: must be .*got \[0, 3, 16, 16\]"),
        (torch.rand(2, 3, 16, 16) * 2 - 1, r"image 0 of the batch has values from -"),
        (torch.full((1, 3, 16, 16), float("nan")), r"image 0 of the batch has NaN"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"uint8.*floating point"),
    ],
)
def test_images_of_another_kind_are_rejected(images, expected, digits_ldm):
    with pytest.raises(InputError, match=expected):
        digits_ldm(images)


def test_images_that_are_no_tensor_are_rejected(digits_ldm):
    with pytest.raises(InputError, match=r"images: must be a tensor.*got a list"):
        digits_ldm.classify([0.5])


def test_labels_beyond_the_classes_are_rejected(digits_ldm):
    with pytest.raises(InputError, match=r"labels: must be below 8.*found 8"):
        digits_ldm(digits("test").images[:2], torch.tensor([8, 0]))


# ----------------------------------------------------------------------- settings and their fit


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"compare_to": "inputs"}, "compare_to.*input, unguided"),
        ({"early_stop": {"ssim": 0.5}}, "early_stop.*psnr, dists, lpips"),
        ({"early_stop_steps": 8}, "early_stop_steps=8: must be 0 to 7"),
        ({"skip_first_steps": -1}, "skip_first_steps=-1"),
        ({"skip_last_steps": 8}, "skip_last_steps=8"),
        ({"forback_skip_diff": -1}, "forback_skip_diff=-1"),
        ({"slots": 0}, "slots=0: must be at least 1"),
        ({"slots": -3}, "slots=-3: must be at least 1"),
    ],
)
def test_each_setting_is_checked(settings, expected):
    with pytest.raises(InputError, match=expected):
        cheap_diffguard(steps=8 if "slots" not in settings else 10, **settings)


def test_a_guided_step_of_two_network_evaluations_needs_two_slots(digits_ldm):
    parts = digits_ldm.classifier, digits_ldm.backbone, ClassifierFreeGuidance()
    with pytest.raises(InputError, match="slots=1: must be at least 2"):
        DiffGuard(*parts, 10, ["l2"], slots=1)


def test_an_interval_without_timesteps_is_rejected():
    guidance = ClassifierGuidance(cutouts=0, interval=(0.45, 0.46))
    with pytest.raises(InputError, match=r"guidance.interval=\[0.45, 0.46\]: contains none"):
        cheap_diffguard(guidance=guidance, steps=10)


@pytest.mark.parametrize(
    ("respacing", "steps"), [("250", 250), (250, 250), ("10,15,20", 45), ("ddim25", 25)]
)
def test_timestep_respacing_takes_the_place_of_steps(respacing, steps):
    diffguard = diffguard_pl.load("digits_gdm", timestep_respacing=respacing)
    assert len(diffguard.schedule) == steps
    if steps == 250:
        assert diffguard.schedule.timesteps[-1] == 999


def test_timestep_respacing_of_a_latent_model_is_rejected():
    with pytest.raises(InputError, match=r"timestep_respacing: LatentDiffusion .*use steps"):
        diffguard_pl.load("digits_ldm", timestep_respacing="10,15,20")


def test_every_number_of_steps_of_a_latent_model():
    for steps, kept in [(3, 3), (300, 333), (1000, 999)]:
        assert len(diffguard_pl.load("digits_ldm", steps=steps).schedule) == kept
    quad = {"backbone__init_args__ddim_discretize": "quad"}
    timesteps = diffguard_pl.load("digits_ldm", steps=5, **quad).schedule.timesteps
    assert timesteps.tolist() == [1, 51, 201, 451, 801]
    with pytest.raises(InputError, match=r"ddim_discretize 'cubic'.*uniform, quad"):
        diffguard_pl.load("digits_ldm", backbone__init_args__ddim_discretize="cubic")


def test_a_backbone_that_does_not_name_its_network_cannot_be_compiled():
    with pytest.raises(InputError, match=r"compile: CheapBackbone.*denoiser"):
        cheap_diffguard(compile=True)


def test_guidance_that_does_not_support_the_backbone_is_rejected(backbone):
    classifier = Classifier(squeezenet(), input_size=28)
    with pytest.raises(InputError, match="ClassifierFreeGuidance does not support PixelDiffusion"):
        DiffGuard(classifier, backbone, ClassifierFreeGuidance(), 8, ["l2"])
    latent = ldm_golden("masked").diffguard.backbone
    with pytest.raises(InputError, match="ClassifierGuidance does not support LatentDiffusion"):
        DiffGuard(classifier, latent, ClassifierGuidance(), 8, ["l2"])
    with pytest.raises(InputError, match="early_stop: does not support LatentDiffusion"):
        DiffGuard(
            classifier, latent, ClassifierFreeGuidance(), 8, ["l2"], early_stop={"psnr": 50.0}
        )


def test_a_classifier_of_more_classes_than_the_backbone_is_rejected(digits_ldm):
    classifier = Classifier(SmallResNet(9), input_size=16)
    parts = classifier, digits_ldm.backbone, ClassifierFreeGuidance()
    with pytest.raises(InputError, match="classifier: must have at most the 8 classes"):
        DiffGuard(*parts, 10, ["l2"])


# ------------------------------------------------------------------------------- NaN


def with_nan(network: nn.Module) -> nn.Module:
    """Return a copy with a weight that is NaN."""
    damaged = copy.deepcopy(network)
    next(damaged.parameters()).data.fill_(float("nan"))
    return damaged


@pytest.mark.parametrize("part", ["classifier", "unet", "first_stage", "embedding"])
def test_nan_of_any_network_is_in_the_scores(part, digits_ldm):
    classifier, backbone = digits_ldm.classifier, digits_ldm.backbone
    if part == "classifier":
        classifier = with_nan(classifier)
    else:
        backbone = copy.deepcopy(backbone)
        setattr(backbone, part, with_nan(getattr(backbone, part)))
    diffguard = DiffGuard(classifier, backbone, ClassifierFreeGuidance(), 2, ["l2", "ssim"])
    scores = diffguard(digits("test").images[:2]).scores
    assert scores["l2"].isnan().all()
    assert scores["ssim"].isnan().all()


def test_nan_of_one_image_leaves_the_others(digits_ldm):
    backbone, images = digits_ldm.backbone, digits("test").images[:3]
    x = digits_ldm.encode(images)
    x[1, 0, 0, 0] = float("nan")
    decoded = backbone.decode(x)
    assert decoded.isnan().flatten(1).any(dim=1).tolist() == [False, True, False]
    expected = backbone.decode(digits_ldm.encode(images))
    torch.testing.assert_close(decoded[[0, 2]], expected[[0, 2]])
