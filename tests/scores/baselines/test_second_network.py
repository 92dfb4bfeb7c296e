"""Baselines of a second network's features, beside those of the classifier."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers.baselines import IMAGES, LABELS, TRAIN
from sklearn.neighbors import NearestNeighbors
from torch import nn

import diffguard_pl
from diffguard_pl import Detector, DiffGuard, InputError
from diffguard_pl.classifiers.classifier import Classifier
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.commands.evaluate import main
from diffguard_pl.runs.store import read_scores
from diffguard_pl.scores.baselines.collection import Baselines
from diffguard_pl.scores.baselines.second_network import SecondNetwork

HALF = (0.5, 0.5, 0.5)
TRAINING = [{"image": TRAIN.images[::3], "label": LABELS[::3]}]


class Encoder(nn.Module):
    """A network without a head: its output [N, 12] are the features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 5, stride=3), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).mean(dim=(2, 3))


def with_second(network: SecondNetwork, **settings) -> DiffGuard:
    model = diffguard_pl.load("digits_ldm", steps=2)
    parts = {
        "classifier": model.classifier,
        "backbone": model.backbone,
        "guidance": model.guidance,
        "steps": 2,
        "discrepancies": ["l2"],
    }
    return DiffGuard(**parts | settings, second_network=network)


def test_scores_are_those_of_the_networks_own_features():
    """Another residual network of 10 classes; the classifier has 8."""
    network = SecondNetwork(
        SmallResNet(10), {"knn": {"K": 3}, "mahalanobis": None}, input_size=16, mean=HALF, std=HALF
    )
    assert network.names == ["knn_smallresnet", "mahalanobis_smallresnet"]
    model = with_second(network, baselines=["msp"])
    assert model.score_names == ["l2", "msp", *network.names]
    model.fit_baselines(iter(TRAINING))
    scores = model(IMAGES[:10]).scores

    def features(images: torch.Tensor) -> np.ndarray:
        found = network.network.view(images).features
        return nn.functional.normalize(found).numpy()

    neighbours = NearestNeighbors(n_neighbors=3).fit(features(TRAINING[0]["image"]))
    distance, _ = neighbours.kneighbors(features(IMAGES[:10]))
    # OpenOOD takes the squared distance, and so may the baseline: the order is the same.
    order = np.argsort(-distance[:, -1])
    np.testing.assert_array_equal(np.argsort(scores["knn_smallresnet"].numpy()), order)
    assert scores["mahalanobis_smallresnet"].isfinite().all()


def test_of_a_network_without_a_head_the_output_is_the_features():
    network = SecondNetwork(Encoder(), ["rmds"], suffix="own", input_size=16)
    model = with_second(network)
    model.fit_baselines(TRAINING)
    images = IMAGES[:5]
    view = network.as_classifier.view(images)
    assert view.logits.shape == (5, 8)
    torch.testing.assert_close(view.features, network.network(images))
    assert model(images).scores["rmds_own"].isfinite().all()


def test_it_can_be_copied():
    network = SecondNetwork(Encoder(), ["rmds"], input_size=16)
    images = IMAGES[:2]
    copied = deepcopy(network).as_classifier.view(images).features
    torch.testing.assert_close(copied, network.as_classifier.view(images).features)


def test_scores_that_need_more_than_features_are_refused():
    for name, what in (("vim", "head"), ("energy", "logits"), ("odin", "gradients")):
        with pytest.raises(InputError, match=f"second_network.scores: {name} looks at .*{what}"):
            SecondNetwork(Encoder(), [name], input_size=16)


def test_errors_name_the_setting_and_come_before_weights_are_loaded():
    with pytest.raises(InputError, match=r"^second_network.model: .*no_such_model"):
        SecondNetwork("no_such_model")
    with pytest.raises(InputError, match=r"^second_network.scores: vim"):
        SecondNetwork("no_such_model", ["vim"])


def test_a_timm_model_by_name_with_images_resized_to_its_size():
    pytest.importorskip("timm")
    network = SecondNetwork("timm/vit_tiny_patch16_224.augreg_in21k", ["knn"], weights="random")
    network.use_classes(8)
    assert network.names == ["knn_vit_tiny_patch16_224"]
    assert network.network.input_size == 224
    assert network.as_classifier.view(IMAGES[:2]).features.shape == (2, 192)


def test_a_detector_file_keeps_what_was_fitted_and_names_other_weights(tmp_path):
    def model(seed: int) -> DiffGuard:
        torch.manual_seed(seed)
        network = SecondNetwork(SmallResNet(4), ["knn"], input_size=16, mean=HALF, std=HALF)
        return with_second(network, compare_to="input")

    detector = Detector(model(0), score="knn_smallresnet").fit_baselines(TRAINING)
    detector.calibrate([TRAIN.images[1::16]])
    file = detector.save(tmp_path / "d.json")
    expected, found = (
        one.predict(IMAGES[:4]).scores for one in (detector, Detector.load(file, model(0)))
    )
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match="weights of the second_network differ"):
        Detector.load(file, model(1))


def test_a_run_from_a_config_fits_it_to_the_training_images(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "second.yaml"
    config.write_text(
        "base: digits_ldm\n"
        "model:\n"
        "  baselines: [msp, knn]\n"
        "  second_network:\n"
        "    model: {class_path: diffguard_pl.classifiers.resnets.SmallResNet}\n"
        "    checkpoint: digits_classifier\n"
        "    input_size: 16\n"
        "    mean: [0.5, 0.5, 0.5]\n"
        "    std: [0.5, 0.5, 0.5]\n"
        "    scores: [knn]\n"
        "    suffix: again\n"
    )
    arguments = ["--config", str(config), "--data.limit", "6", "--page.enabled", "false"]
    arguments += ["--model.steps", "2", "--pictures.count", "0"]
    main([*arguments, "--trainer.default_root_dir", str(tmp_path / "run")])
    frame, header = read_scores(tmp_path / "run")
    assert header.scores[-2:] == ["knn", "knn_again"]
    # The same network, and so the same score.
    np.testing.assert_allclose(frame["knn"], frame["knn_again"], rtol=1e-5)
    assert len(list((tmp_path / "cache" / "features").glob("*.safetensors"))) == 2


def test_the_classes_are_those_of_the_classifier():
    network = SecondNetwork(SmallResNet(3), ["mahalanobis"], input_size=16)
    network.use_classes(8)
    assert isinstance(network.network, Classifier)
    assert isinstance(network.baselines, Baselines)
    features, logits = torch.randn(7, 4), torch.zeros(7, 8)
    with pytest.raises(InputError, match="no training images of 1 of 8 classes"):
        network.baselines.fit_features(features, logits, torch.arange(7))
