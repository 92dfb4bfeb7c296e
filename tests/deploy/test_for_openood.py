"""DiffGuard as a postprocessor of OpenOOD."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.adapters import FAST, images_of
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize, resize

import diffguard_pl
from diffguard_pl import Detector, InputError
from diffguard_pl.classifiers.resnets import CIFAR10
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out
from diffguard_pl.deploy.for_openood import DiffGuardPostprocessor

HALF = [0.5, 0.5, 0.5]


class OpenOODItems(Dataset):
    """Items as OpenOOD's loaders return them: normalised, with ``data`` for the image."""

    def __init__(self, data, mean=HALF, std=HALF, size=16):
        self.data, self.mean, self.std, self.size = data, mean, std, size

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image = resize(self.data[index]["image"], [self.size, self.size])
        return {"data": normalize(image, self.mean, self.std), "label": self.data[index]["label"]}


class Rolled(torch.nn.Module):
    def forward(self, logits):
        return logits.roll(1, dims=1)


def test_scores_and_predictions_are_the_detectors(calibrated):
    method, detector = (
        DiffGuardPostprocessor(calibrated, CIFAR10.mean, CIFAR10.std),
        Detector.load(calibrated),
    )
    data = spread(digits("test"), 30)
    pred, conf, label = method.inference(
        None, DataLoader(OpenOODItems(data, CIFAR10.mean, CIFAR10.std), 7), progress=False
    )
    expected = detector.predict(images_of(data))
    assert all(isinstance(part, np.ndarray) and part.shape == (30,) for part in (pred, conf, label))
    np.testing.assert_array_equal(pred, expected.labels)
    np.testing.assert_array_equal(label, [item["label"] for item in data])
    np.testing.assert_allclose(conf, expected.scores, atol=1e-5)
    batch = next(iter(DataLoader(OpenOODItems(data, CIFAR10.mean, CIFAR10.std), 5)))["data"]
    pred, conf = method.postprocess(None, batch)
    torch.testing.assert_close(conf, expected.scores[:5], atol=1e-5, rtol=0)
    assert torch.equal(pred, expected.labels[:5])


def test_in_distribution_images_score_higher(calibrated):
    method = DiffGuardPostprocessor(calibrated, HALF, HALF)
    of = [
        method.inference(None, DataLoader(OpenOODItems(spread(data, 40)), 16), False)[1]
        for data in (digits("test"), held_out())
    ]
    assert roc_auc_score(np.repeat([1, 0], 40), np.concatenate(of)) > 0.95


def test_images_of_another_size_are_resized(calibrated):
    method = DiffGuardPostprocessor(calibrated, HALF, HALF)
    data = spread(digits("test"), 8)
    large = method.inference(None, DataLoader(OpenOODItems(data, size=48), 4), False)[1]
    np.testing.assert_allclose(
        large, method.inference(None, DataLoader(OpenOODItems(data), 4), False)[1], atol=0.05
    )


def test_setup_fits_and_calibrates_an_uncalibrated_detector():
    model = diffguard_pl.load("digits_ldm", **FAST, baselines={"knn": {"K": 5}})
    method = DiffGuardPostprocessor(Detector(model), HALF, HALF)
    loaders = {
        part: DataLoader(OpenOODItems(spread(digits(part), 60)), 20) for part in ("train", "val")
    }
    method.setup(model.classifier.model, loaders, {})
    assert model.baselines.fitted
    by_hand = Detector(model).calibrate([images_of(spread(digits("val"), 60))])
    assert method.detector.threshold == pytest.approx(by_hand.threshold, abs=1e-5)
    assert (method.APS_mode, method.hyperparam_search_done, method.args_dict) == (False, True, {})


def test_setup_leaves_a_calibrated_detector_as_it_is(calibrated):
    method = DiffGuardPostprocessor(calibrated, HALF, HALF)
    before = method.detector.threshold
    method.setup(
        method.detector.model.classifier.model,
        {"val": DataLoader(OpenOODItems(spread(digits("test"), 20)), 20)},
        {},
    )
    assert method.detector.threshold == before


def test_setup_refuses_another_classifier(calibrated):
    method = DiffGuardPostprocessor(calibrated, HALF, HALF)
    net = torch.nn.Sequential(method.detector.model.classifier.model, Rolled())
    with pytest.raises(InputError, match=r"agree on 0 of 20 images; use a detector of this net"):
        method.setup(net, {"val": DataLoader(OpenOODItems(spread(digits("val"), 20)), 20)}, {})


def test_with_openood_installed_it_is_a_postprocessor_of_openood(calibrated, monkeypatch):
    class BasePostprocessor:
        def __init__(self, config):
            raise AssertionError("not for this one")

    assert type(DiffGuardPostprocessor(calibrated, HALF, HALF)) is DiffGuardPostprocessor
    for name in ("openood", "openood.postprocessors"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["openood.postprocessors"].BasePostprocessor = BasePostprocessor
    method = DiffGuardPostprocessor(calibrated, HALF, HALF)
    assert isinstance(method, BasePostprocessor)
    assert isinstance(method, DiffGuardPostprocessor)
    assert method.config is None
