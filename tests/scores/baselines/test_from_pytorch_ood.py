"""Detectors of pytorch-ood as baselines give pytorch-ood's own scores, negated."""

import inspect

import pytest
import pytorch_ood.detector
import torch
from helpers.baselines import IMAGES, LABELS, TRAIN, digits_classifier
from pytorch_ood.api import GradientDetector
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from diffguard_pl import Detector, InputError
from diffguard_pl.classifiers.classifier import Classifier
from diffguard_pl.scores.baselines.collection import Baselines
from diffguard_pl.scores.baselines.from_pytorch_ood import REFUSED
from diffguard_pl.scores.baselines.names import BASELINES
from diffguard_pl.scores.training_features import training_features

SETTINGS = {"DICE": {"p": 0.7}, "ViM": {"d": 20}, "NNGuide": {"k": 5}}
"""Arguments that pytorch-ood requires, or other than its defaults."""
ALL = [
    name
    for name, found in vars(pytorch_ood.detector).items()
    if inspect.isclass(found) and name not in REFUSED
]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return digits_classifier()


@pytest.fixture(scope="module")
def training(classifier) -> tuple:
    return training_features(classifier, [{"image": TRAIN.images, "label": LABELS}])


def baseline(classifier: Classifier, training: tuple, name: str) -> Baselines:
    module = Baselines({f"pytorch_ood.detector.{name}": SETTINGS.get(name)}, classifier)
    module.fit_features(*training)
    return module


class Logits(nn.Module):
    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier.view(images).logits


class Features(Logits):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier.view(images).features


@pytest.mark.parametrize("name", ["KLMatching", "MaxSoftmax", "NNGuide", "fDBD", "SHE", "DICE"])
def test_it_is_pytorch_oods_own_score(classifier, training, name):
    """By images, as pytorch-ood's users would call it."""
    detector_class = getattr(pytorch_ood.detector, name)
    weight, bias = classifier.linear_head()
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.weight.data, head.bias.data = weight, bias
    parts = {
        "model": Logits(classifier),
        "encoder": Features(classifier),
        "head": head,
        "w": weight,
        "b": bias,
    }
    names = inspect.signature(detector_class.__init__).parameters
    own = {name: part for name, part in parts.items() if name in names}
    detector = detector_class(**own, **SETTINGS.get(name, {})).to("cpu")
    with torch.no_grad():
        if detector.requires_fit:
            detector.fit(DataLoader(TensorDataset(TRAIN.images, LABELS), 256))
        expected = -detector.predict(IMAGES)
    module = baseline(classifier, training, name)
    (score,) = module(classifier.view(IMAGES), IMAGES).values()
    torch.testing.assert_close(score, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_a_score_is_finite_and_does_not_depend_on_the_batch(classifier, training, name):
    module = baseline(classifier, training, name)
    images = IMAGES[::7]
    (score,) = module(classifier.view(images), images).values()
    assert score.isfinite().all()
    parts = [module(classifier.view(part), part)[module.names[0]] for part in images.split(5)]
    torch.testing.assert_close(torch.cat(parts), score, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():  # which runs are in
        again = baseline(classifier, training, name)
        (found,) = again(classifier.view(images), images).values()
    torch.testing.assert_close(found, score, rtol=1e-4, atol=1e-4)
    is_gradient = issubclass(getattr(pytorch_ood.detector, name), GradientDetector)
    assert module.needs_fit == getattr(pytorch_ood.detector, name).requires_fit
    assert not is_gradient or not any(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_those_that_cannot_be_are_named_with_the_reason(classifier, name):
    assert hasattr(pytorch_ood.detector, name)
    with pytest.raises(InputError, match=f"{name} of pytorch-ood {REFUSED[name]}; leave it out"):
        Baselines([f"pytorch_ood.detector.{name}"], classifier)


def test_a_detector_follows_the_classifier_to_another_precision(training):
    classifier = digits_classifier()
    module = baseline(classifier, training, "GradNorm")
    (before,) = module(classifier.view(IMAGES[:4]), IMAGES[:4]).values()
    classifier.networks_to(torch.bfloat16)
    (after,) = module(classifier.view(IMAGES[:4]), IMAGES[:4]).values()
    assert not torch.equal(before, after)


def test_an_unknown_name_lists_the_detectors(classifier):
    with pytest.raises(InputError, match=r"unknown name 'NoSuch' in pytorch_ood.detector.*NNGuide"):
        Baselines(["pytorch_ood.detector.NoSuch"], classifier)


def test_names_do_not_collide(classifier):
    module = Baselines(["knn", "pytorch_ood.detector.KNN", "pytorch_ood.detector.SHE"], classifier)
    assert module.names == ["knn", "knn_pytorch_ood", "she"]
    assert "nnguide" not in BASELINES


def test_wrong_arguments_are_refused(classifier, training):
    with pytest.raises(InputError, match=r"hyper-parameter of baseline nnguide 'K'.*: k"):
        Baselines({"pytorch_ood.detector.NNGuide": {"K": 5}}, classifier)
    module = Baselines(["pytorch_ood.detector.DICE"], classifier)
    module.fit_features(*training)
    with pytest.raises(InputError, match=r"dice: pytorch-ood refuses it \(.*'p'.*leave it out"):
        module(classifier.view(IMAGES[:2]), IMAGES[:2])


def test_a_detector_file_keeps_the_images_that_it_was_fitted_to(digits_ldm, tmp_path):
    import diffguard_pl

    settings = {"baselines": {"pytorch_ood.detector.NNGuide": {"k": 5}}, "steps": 2}
    model = diffguard_pl.load("digits_ldm", **settings)
    detector = Detector(model, score="nnguide")
    detector.fit_baselines([{"image": TRAIN.images[::4], "label": LABELS[::4]}])
    detector.calibrate([TRAIN.images[1::16]])
    again = Detector.load(
        detector.save(tmp_path / "d.json"), diffguard_pl.load("digits_ldm", **settings)
    )
    expected, found = (one.predict(IMAGES[:4]).scores for one in (detector, again))
    torch.testing.assert_close(found, expected)
