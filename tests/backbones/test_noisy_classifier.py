"""guided-diffusion's classifier of noisy images, against the original's data."""

import pytest
import torch
from helpers.golden import GDM_ARCHITECTURE, REFERENCE
from helpers.originals import GDM_FILE
from safetensors.torch import load_file

from diffguard_pl import Classifier, InputError
from diffguard_pl.backbones import (
    LatentDiffusion,
    NoisyClassifier,
    NoisyClassifierArchitecture,
    PixelDiffusion,
)
from diffguard_pl.backbones.noisy_classifier import noisy_classifier_for

FILE = str(REFERENCE / "noisy_classifier.pt")
ARCHITECTURE = {
    "image_size": 32,
    "classifier_width": 32,
    "channel_mult": (1, 2),
    "classifier_depth": 1,
    "classifier_attention_resolutions": (16,),
    "num_head_channels": 16,
    "num_classes": 10,
}


def small(**changes) -> NoisyClassifier:
    return NoisyClassifier(FILE, NoisyClassifierArchitecture(**ARCHITECTURE | changes))


def test_logits_are_those_of_the_original_module():
    golden = load_file(REFERENCE / "noisy_classifier_golden.safetensors")
    classifier = small()
    logits = classifier(golden["x"], golden["t"])
    torch.testing.assert_close(logits, golden["logits"], atol=1e-5, rtol=0)

    # without a timestep: that of clean images
    clean = classifier(golden["x"])
    torch.testing.assert_close(clean[:1], golden["logits"][:1], atol=1e-5, rtol=0)
    assert (clean[2] - golden["logits"][2]).abs().max() > 0.05
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_it_serves_as_the_classifier_of_a_config():
    classifier = Classifier(small(), input_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    view, cam = classifier.view_with_cam(images)
    torch.testing.assert_close(view.logits, small()(images * 2 - 1))
    assert classifier.heads == ["conv_out.c_proj"]
    assert cam.shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"num_classes": 11}, "num_classes"),
        ({"image_size": 64, "classifier_attention_resolutions": (32,)}, "image_size"),
        ({"classifier_width": 64}, "classifier_width"),
        ({"classifier_depth": 2}, "classifier_depth"),
        ({"classifier_attention_resolutions": (16, 32)}, "classifier_attention_resolutions"),
    ],
)
def test_weights_of_another_architecture_are_refused(changes, setting):
    with pytest.raises(InputError, match=rf"does not fit.*check the setting .*{setting}"):
        small(**changes)


def test_weights_that_are_no_classifier_are_refused(checkpoint_cache):
    with pytest.raises(InputError, match=r"gdm-imagenet256 .*choose from: gdm-classifier256"):
        NoisyClassifier("gdm-imagenet256")
    with pytest.raises(InputError, match="is a folder"):
        NoisyClassifier("digits_gdm")
    assert not checkpoint_cache.exists()


def test_the_published_architecture_has_as_many_parameters_as_in_the_original_code(monkeypatch):
    # Its weights need not be drawn.
    monkeypatch.setattr("diffguard_pl.backbones.noisy_classifier.with_random_weights", print)
    classifier = NoisyClassifier("random")
    assert sum(parameter.numel() for parameter in classifier.parameters()) == 54_096_360


def test_a_diffusion_model_gets_a_classifier_for_its_noisy_images():
    pixel = PixelDiffusion(str(GDM_FILE), GDM_ARCHITECTURE)
    assert noisy_classifier_for(pixel, None) is None
    classifier = small()
    assert noisy_classifier_for(pixel, classifier) is classifier
    mine = torch.nn.Linear(1, 1)
    assert not noisy_classifier_for(pixel, mine).weight.requires_grad
    with pytest.raises(InputError, match=r"analysis.noisy_classifier: .*file not found"):
        noisy_classifier_for(pixel, "mine.NotFound")
    with pytest.raises(InputError, match=r"analysis.noisy_classifier.*latents.*pixel-space"):
        noisy_classifier_for(LatentDiffusion("digits_ldm"), classifier)
    with pytest.raises(InputError, match=r"analysis.noisy_classifier.*32 pixels.*16"):
        noisy_classifier_for(PixelDiffusion("digits_gdm"), classifier)
