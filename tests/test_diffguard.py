"""The detector composed of parts."""

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

from diffguard_pl import Classifier, DiffGuard, InputError
from diffguard_pl.backbones import PixelDiffusion
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance


def gdm(backbone: PixelDiffusion, **settings) -> DiffGuard:
    classifier = Classifier(squeezenet(), input_size=28)
    return DiffGuard(
        classifier,
        backbone,
        ClassifierGuidance(cutouts=2, cutout_size=24),
        8,
        ["l2", "features"],
        **settings,
    )


@pytest.fixture
def backbone() -> PixelDiffusion:
    return PixelDiffusion(str(REFERENCE / "gdm_unet.pt"), GDM_ARCHITECTURE, input_size=28)


def test_a_class_conditional_pixel_model_is_told_the_label_and_the_classifier_steers(tmp_path):
    architecture = replace(GDM_ARCHITECTURE, class_cond=True, num_classes=10)
    path = saved(original_state(architecture), tmp_path / "model.pt")
    detector = gdm(PixelDiffusion(path, architecture, input_size=28), compare_to="unguided")
    images = torch.rand(2, 3, 28, 28)
    one, other = (detector(images, torch.tensor(labels)) for labels in ([1, 1], [1, 5]))
    torch.testing.assert_close(one.reconstructions[0], other.reconstructions[0], atol=1e-4, rtol=0)
    assert not torch.allclose(one.reconstructions[1], other.reconstructions[1], atol=1e-3)
    assert (one.reconstructions != one.unguided).any()


def test_images_stop_early_each_for_itself_in_one_batch(backbone):
    images = torch.stack(
        [torch.full((3, 28, 28), 0.5), torch.rand(3, 28, 28), torch.ones(3, 28, 28)]
    )
    settings = {"early_stop": {"psnr": 48.0}, "forback_skip_diff": 2, "compare_to": "unguided"}
    detector = gdm(backbone, **settings)
    together = detector(images)
    alone = [detector(image[None]) for image in images]
    assert len(set(together.stop_index.tolist())) > 1
    assert together.stop_index.tolist() == [int(d.stop_index) for d in alone]
    unguided = torch.cat([d.unguided for d in alone])
    torch.testing.assert_close(together.unguided, unguided, atol=1e-3, rtol=0)
    counter = NFECounter(backbone.unet)
    stops = detector(images).stop_index
    inverted, denoised = (stops + 1).sum(), (stops + 2).clamp(max=8).sum()
    assert (
        counter.nfe == inverted + 2 * denoised - 3
    )  # the first step without guidance is part of that with it


def test_padding_and_cutouts_of_another_size_than_the_classifier_takes():
    padded = PixelDiffusion(
        str(REFERENCE / "gdm_unet.pt"), GDM_ARCHITECTURE, input_size=28, process_method="pad"
    )
    detection = gdm(padded, early_stop={"psnr": 48.0})(torch.rand(2, 3, 28, 28))
    assert detection.reconstructions.shape == (2, 3, 28, 28)


def test_reconstructing_under_each_label_moves_towards_it():
    golden = gdm_golden("smooth")
    detector, images = golden.diffguard, golden.images
    images = images[:1].expand(4, -1, -1, -1)
    labels = torch.tensor([0, 3, 6, 9])
    weak = detector(images, labels)
    detector.guidance.scale = 30.0
    strong = detector(images, labels)

    def belief(reconstructions: torch.Tensor) -> torch.Tensor:
        return detector.classifier(reconstructions).log_softmax(1).gather(1, labels[:, None])[:, 0]

    assert (belief(strong.reconstructions) > belief(weak.reconstructions)).all()


def test_scale_one_without_a_mask_needs_one_row_a_step():
    golden = ldm_golden("unmasked")
    golden.diffguard.guidance.scale = 1.0
    counter = NFECounter(golden.diffguard.backbone.unet)
    golden.diffguard(golden.images)
    assert counter.nfe == 3 * 8 * 2


def test_the_callback_sees_every_step(backbone):
    detector = gdm(backbone)
    seen = []
    prediction = detector.classify(torch.rand(2, 3, 28, 28))
    inversion = detector.invert(torch.rand(2, 3, 28, 28), prediction, callback=seen.append)
    detector.reconstruct(inversion, prediction, callback=seen.append)
    assert [int(step.index[0]) for step in seen] == [*range(8), *reversed(range(8))]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compare_to": "inputs"}, "unknown compare_to 'inputs'; choose from: input, unguided"),
        (
            {"early_stop": {"ssim": 0.5}},
            "unknown early_stop metric 'ssim'; choose from: psnr, dists, lpips",
        ),
        ({"early_stop_steps": 8}, "early_stop_steps=8: must be 0 to 7"),
        ({"skip_first_steps": -1}, "skip_first_steps=-1"),
        ({"forback_skip_diff": -1}, "forback_skip_diff=-1"),
    ],
)
def test_settings_that_cannot_be(settings, said, backbone):
    with pytest.raises(InputError, match=said):
        gdm(backbone, **settings)


def test_guidance_and_backbone_that_do_not_go_together(backbone):
    classifier = Classifier(squeezenet(), input_size=28)
    with pytest.raises(InputError, match="ClassifierFreeGuidance does not support"):
        DiffGuard(classifier, backbone, ClassifierFreeGuidance(), 8, ["l2"])
    with pytest.raises(InputError, match="ClassifierGuidance does not support LatentDiffusion"):
        DiffGuard(
            classifier, ldm_golden("masked").diffguard.backbone, ClassifierGuidance(), 8, ["l2"]
        )
    with pytest.raises(InputError, match="cam_cut=3"):
        ClassifierFreeGuidance(cam_cut=3)
