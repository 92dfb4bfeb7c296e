"""ODIN equals its definition on normalised images, leaves no gradients, and works on what the
classifier sees."""

import pytest
import torch
from helpers.baselines import IMAGES, assert_close
from pytorch_ood import detector as theirs
from scipy.special import softmax
from torch import nn

from diffguard_pl import Classifier
from diffguard_pl.classifiers.classifier import View
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.digits import photos
from diffguard_pl.scores.baselines.collection import Baselines


def test_odin_moves_normalised_images_by_noise_over_std():
    mean = torch.tensor([0.4, 0.5, 0.3]).view(1, 3, 1, 1)
    std = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1)
    torch.manual_seed(0)
    model = SmallResNet().eval()
    classifier = Classifier(model, input_size=16, mean=(0.4, 0.5, 0.3), std=(0.2, 0.5, 0.3))
    images = photos(8).images.clone()
    normalised = ((images - mean) / std).requires_grad_()
    logits = model(normalised)
    nn.CrossEntropyLoss()(logits / 1000, logits.argmax(1)).backward()
    moved = normalised.detach() - 0.0014 * (2.0 * (normalised.grad >= 0) - 1) / std
    expected = softmax(model(moved).detach().double().numpy() / 1000, axis=1).max(1)
    odin = Baselines(["odin"], classifier)
    assert_close(odin(classifier.view(images), images)["odin"], expected, rtol=3e-7, atol=0)


def test_odin_is_pytorch_oods(classifier: Classifier, fitted: Baselines, view: View):
    expected = -theirs.ODIN(classifier).predict(IMAGES).numpy()
    assert_close(fitted(view, IMAGES)["odin"], expected, rtol=3e-7, atol=0)


def test_odin_moves_what_the_classifier_sees(classifier: Classifier):
    large = nn.functional.interpolate(IMAGES[:4], size=(40, 40), mode="bilinear")
    small = classifier.resize_and_crop(large)
    odin = Baselines(["odin"], classifier)
    of_large = odin(classifier.view(large), large)["odin"]
    of_small = odin(classifier.view(small), small)["odin"]
    assert_close(of_large, of_small.numpy())


def test_odin_in_inference_mode_leaves_no_gradients(classifier: Classifier):
    odin = Baselines(["odin"], classifier)
    with torch.inference_mode():
        images = IMAGES[:4] * 1
        scores = odin(classifier.view(images), images)["odin"]
    assert all(weights.grad is None for weights in classifier.parameters())
    assert torch.equal(scores, odin(classifier.view(IMAGES[:4]), IMAGES[:4])["odin"])


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_noise_makes_the_classifier_more_certain(classifier: Classifier, view: View, noise: float):
    odin = Baselines({"odin": {"temperature": 1, "noise": noise}}, classifier)
    gain = odin(view, IMAGES)["odin"] - view.logits.softmax(dim=1).amax(dim=1)
    assert gain.abs().max() < 1e-6 if noise == 0 else gain.mean() > 0
