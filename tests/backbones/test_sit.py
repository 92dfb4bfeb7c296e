"""SiT's network gives what its authors' module gives, and runs as a backbone."""

from pathlib import Path

import pytest
import torch
from helpers.sit import inputs, reference, save, weights
from helpers.small_models import assert_scores_do_not_depend_on_the_batch, autoencoder

from diffguard_pl import Classifier, DiffGuard, InputError
from diffguard_pl.backbones import SiTDiffusion
from diffguard_pl.backbones.sit import load_sit
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.ddim import Level, predict_x0
from diffguard_pl.diffusion.schedule import alpha_bar_at, timesteps_at


@pytest.fixture
def backbone(tmp_path: Path) -> SiTDiffusion:
    autoencoder().save_pretrained(tmp_path / "vae")
    return SiTDiffusion(str(save(tmp_path)), str(tmp_path / "vae"), num_heads=2)


@torch.no_grad()
def test_the_network_is_its_authors(tmp_path: Path):
    network = load_sit(save(tmp_path), num_heads=2)
    x, times, labels = inputs()
    output = network(x, times, class_labels=labels).sample[:, :4]
    expected = torch.tensor(reference()["output"]).view_as(output)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_eps_is_that_of_the_velocity(backbone: SiTDiffusion):
    """SiT has x = t x0 + (1 - t) eps at its time t, and predicts x0 - eps."""
    assert (backbone.null_label, backbone.num_classes, backbone.image_size) == (5, 5, 16)
    own, times, labels = inputs()
    velocity = torch.tensor(reference()["output"], dtype=torch.float64).view_as(own)
    t = times.double().view(-1, 1, 1, 1)
    eps, x0 = own - t * velocity, own + (1 - t) * velocity

    x = own / (t**2 + (1 - t) ** 2).sqrt().float()
    timesteps = timesteps_at(backbone.alpha_bar, (1 - times.double()) / times.double())
    found = backbone.eps(x, timesteps, labels)
    assert (found - eps).abs().max() < 1e-5 * eps.abs().max()
    level = Level.of(alpha_bar_at(backbone.alpha_bar, timesteps), x)
    assert (predict_x0(x, found, level) - x0).abs().max() < 1e-4 * x0.abs().max()


def test_the_score_of_an_image_does_not_depend_on_the_batch(backbone: SiTDiffusion):
    torch.manual_seed(4)
    classifier = Classifier(SmallResNet(5), input_size=16)
    diffguard = DiffGuard(classifier, backbone, ClassifierFreeGuidance(2.0), 4, ["l2"], slots=4)
    assert_scores_do_not_depend_on_the_batch(diffguard, 16)


def test_a_file_that_does_not_fit_is_named(tmp_path: Path):
    state = weights(reference()["shapes"])

    def load(state: dict, **settings: int) -> None:
        torch.save(state, tmp_path / "file.pt")
        load_sit(tmp_path / "file.pt", **settings)

    with pytest.raises(InputError, match=r"does not fit, it has no x_embedder\.proj\.weight"):
        load({"weight": torch.zeros(2)})
    with pytest.raises(InputError, match=r"does not fit \('pos_embed'\)"):
        load({key: value for key, value in state.items() if key != "pos_embed"})
    with pytest.raises(InputError, match=r"its blocks\.1\.mlp\.fc1\.bias .* is missing"):
        load({key: value for key, value in state.items() if key != "blocks.1.mlp.fc1.bias"})
    with pytest.raises(InputError, match="num_heads=3: must divide the width 32"):
        load(state, num_heads=3)
