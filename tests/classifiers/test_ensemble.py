"""Several checkpoints act as one classifier, the deep ensemble."""

import pytest
import torch
from helpers.ensembles import small_checkpoints
from torch import Tensor

from diffguard_pl import Classifier, InputError
from diffguard_pl.classifiers.classifier import scale_to_unit_range
from diffguard_pl.classifiers.ensemble import ensemble_logits
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.diffusion.ddim import Level
from diffguard_pl.diffusion.guidance import GuidingClassifier
from diffguard_pl.scores.baselines.collection import Baselines


def classifier(checkpoint: str | list[str]) -> Classifier:
    return Classifier(SmallResNet(5), checkpoint, input_size=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    return small_checkpoints(tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="module")
def ensemble(files) -> Classifier:
    return classifier(files)


@pytest.fixture(scope="module")
def members(files) -> list[Classifier]:
    return [classifier(file) for file in files]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_its_probabilities_and_energies_are_the_mean_of_its_members(ensemble, members, images):
    view, views = ensemble.view(images), [member.view(images) for member in members]
    p = torch.stack([of.logits.softmax(1) for of in views])
    assert len({tuple(of.argmax(1).tolist()) for of in p}) > 1  # the members disagree
    torch.testing.assert_close(view.logits.softmax(1), p.mean(0))
    energies = torch.stack([of.logits.logsumexp(1) for of in views])
    torch.testing.assert_close(view.logits.logsumexp(1), energies.mean(0))
    assert ensemble.members == 3


def test_its_label_has_the_highest_mean_probability_not_the_highest_mean_logit():
    logits = torch.tensor([[[3.0, 0.0], [3.0, 0.0], [-10.0, 0.0]]])  # one image, three members
    assert ensemble_logits(logits).argmax() == 0
    assert logits.mean(dim=1).argmax() == 1


def test_members_that_agree_have_the_logits_of_each():
    logits = torch.randn(4, 1, 10) * 30
    torch.testing.assert_close(ensemble_logits(logits.expand(-1, 3, -1)), logits[:, 0])


def test_features_and_maps_of_the_members_stand_side_by_side(ensemble, members, images):
    view, views = ensemble.view(images), [member.view(images) for member in members]
    assert torch.equal(view.features, torch.cat([of.features for of in views], dim=1))
    assert torch.equal(view.member_logits, torch.stack([of.logits for of in views], dim=1))
    maps = [layer for of in views for layer in of.maps]
    assert len(view.maps) == len(maps) > 3
    assert all(map(torch.equal, view.maps, maps))
    assert views[0].member_logits is None
    assert ensemble.linear_head() is None


def test_its_grad_cam_is_that_of_one_layer_with_the_channels_of_all(ensemble, images):
    view, cam = ensemble.view_with_cam(images)
    torch.testing.assert_close(view.logits, ensemble(images))
    x = (images - ensemble.mean) / ensemble.std
    networks = list(ensemble.model.members)
    layers = [of.stage3(of.stage2(of.stage1(of.stem(x)))).requires_grad_() for of in networks]
    logits = [of.fc(maps.mean((2, 3))) for of, maps in zip(networks, layers, strict=True)]
    p = torch.stack(logits).softmax(dim=2).mean(0)
    energy = torch.stack(logits).logsumexp(dim=2).mean(0)
    scores = (p.log() + energy[:, None]).amax(dim=1)
    maps, gradient = torch.cat(layers, 1), torch.cat(torch.autograd.grad(scores.sum(), layers), 1)
    by_hand = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu().detach()
    by_hand = torch.nn.functional.interpolate(by_hand, 16, mode="bilinear")
    torch.testing.assert_close(cam, scale_to_unit_range(by_hand), atol=1e-5, rtol=1e-4)


def test_guidance_follows_the_gradient_of_the_mean_probability(ensemble, members, images):
    labels = torch.arange(6) % 5
    x = images * 2 - 1
    ones = torch.ones(6, 1, 1, 1)
    guiding = GuidingClassifier(ensemble.logits_at_any_size, ensemble.input_size)
    gradient = ClassifierGuidance(cutouts=0, x0hat=False).gradient(
        x, x, Level(ones, ones), labels, None, guiding
    )
    x = x.requires_grad_()
    p = torch.stack([member((x + 1) / 2).softmax(1) for member in members]).mean(0)
    (expected,) = torch.autograd.grad(p.gather(1, labels[:, None]).log().sum(), x)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)


def test_an_image_is_classified_alike_in_any_batch(ensemble, images):
    together = ensemble.view(images)
    for i in range(len(images)):
        alone = ensemble.view(images[i : i + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[i])
        torch.testing.assert_close(alone.features[0], together.features[i])


def test_the_confidence_averages_probabilities_or_as_openood_logits(ensemble, members, images):
    logits = torch.stack([member.view(images).logits for member in members])
    expected = {
        "probabilities": logits.softmax(2).mean(0).amax(1),
        "logits": logits.mean(0).softmax(1).amax(1),
    }
    assert not torch.allclose(*expected.values(), atol=1e-2)
    for average, scores in expected.items():
        baselines = Baselines({"ensemble": {"average": average}, "msp": None}, ensemble)
        found = baselines(ensemble.view(images), images)
        torch.testing.assert_close(found["ensemble"], scores)
        torch.testing.assert_close(found["msp"], expected["probabilities"])
    default = Baselines(["ensemble"], ensemble)
    assert default.hyperparameters == {"ensemble": {"average": "probabilities"}}


def test_baselines_of_logits_and_features_are_those_of_the_whole(ensemble, images):
    names = ["max_logit", "energy", "entropy", "gen", "odin", "knn", "mahalanobis", "rmds"]
    baselines = Baselines({name: None for name in names} | {"knn": {"K": 2}}, ensemble)
    train = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    view = ensemble.view(train)
    baselines.fit_features(view.features, view.logits, torch.arange(30) % 5)
    scores = baselines(ensemble.view(images), images)
    assert all(scores[name].isfinite().all() for name in names)


@pytest.mark.parametrize("name", ["react", "ash", "scale", "vim"])
def test_a_baseline_that_needs_one_linear_head_is_refused(name, ensemble):
    with pytest.raises(InputError, match=f"^baselines: {name} .*ensemble.*classifier.checkpoint"):
        Baselines([name], ensemble)


def test_what_makes_no_ensemble_is_refused(files, tmp_path):
    with pytest.raises(InputError, match=r"classifier.checkpoint: .* each once"):
        classifier([files[0], files[0]])
    with pytest.raises(InputError, match=r"classifier.checkpoint: \[\] must be"):
        classifier([])
    (other,) = small_checkpoints(tmp_path, 1, classes=7)
    with pytest.raises(InputError, match=r"s0.ckpt does not fit SmallResNet.*classifier.model"):
        classifier([files[1], other])
    with pytest.raises(InputError, match=r"baselines: ensemble .*classifier.checkpoint"):
        Baselines(["ensemble"], classifier(files[:1]))
    with pytest.raises(InputError, match=r"average of baseline ensemble 'mean'; choose from"):
        Baselines({"ensemble": {"average": "mean"}}, classifier(files))
