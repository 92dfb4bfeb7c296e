"""DiffGuard as a detector of pytorch-ood."""

import numpy as np
import pytest
import torch
from helpers.adapters import FAST, images_of
from pytorch_ood.api import RequiresFittingException
from pytorch_ood.benchmark import Benchmark
from pytorch_ood.metrics import OODMetrics
from sklearn.metrics import roc_auc_score
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize

import diffguard_pl
from diffguard_pl import Detector, InputError
from diffguard_pl.classifiers.resnets import CIFAR10
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out
from diffguard_pl.deploy.for_pytorch_ood import DiffGuardDetector
from diffguard_pl.scores.combination import Cascade


class Pairs(Dataset):
    """Pairs of image and label, as in pytorch-ood's datasets."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]["image"], self.data[index]["label"]


def test_metrics_and_benchmarks_of_pytorch_ood_accept_it(calibrated):
    detector = DiffGuardDetector(calibrated)
    ind, ood = (Pairs(spread(data, 30)) for data in (digits("test"), held_out()))

    class Digits(Benchmark):
        ood_names = ["4 and 9"]  # noqa: RUF012

        def train_set(self):
            return ind

        def test_sets(self, known=True, unknown=True):
            return [ConcatDataset([ind, ood])]

    (result,) = Digits().evaluate(detector, loader_kwargs={"batch_size": 16})
    metrics = OODMetrics()
    own = Detector.load(calibrated)
    scores = torch.cat([own.predict(images_of(part.data)).scores for part in (ind, ood)])
    for images, labels in DataLoader(ConcatDataset([ind, ood]), 16):
        metrics.update(detector(images), labels)
    assert result["AUROC"] == pytest.approx(
        float(roc_auc_score(np.repeat([1, 0], 30), scores)), abs=1e-6
    )
    assert result["AUROC"] == pytest.approx(float(metrics.compute()["AUROC"]))
    assert result["AUROC"] > 0.95


def test_it_has_the_methods_of_a_pytorch_ood_detector():
    model = diffguard_pl.load("digits_ldm", **FAST, baselines=["msp"])
    detector = DiffGuardDetector(Detector(model, cascade=Cascade(budget=0.5)))
    images = images_of(spread(digits("test"), 6))
    assert detector.requires_fit
    for ask in (
        lambda: detector.predict(images),
        lambda: detector.predict_features(torch.zeros(2, 2)),
    ):
        with pytest.raises(RequiresFittingException):
            ask()
    val = ConcatDataset([Pairs(spread(digits("val"), 50)), Pairs(spread(held_out(), 5))])
    assert detector.fit(DataLoader(val, 18)) is detector
    assert (
        detector.detector.calibrated.images == 25
    )  # the others make the cascade's scale; the 4s and 9s are passed over
    scores = detector.predict(images)
    features = detector.detector.features(images)
    torch.testing.assert_close(detector.predict_features(features), scores)
    again = DiffGuardDetector(Detector(model, cascade=Cascade(budget=0.5)))
    again.fit_features(
        detector.detector.features(images_of(spread(digits("val"), 50))), torch.zeros(50)
    )
    torch.testing.assert_close(again.predict(images), scores)
    assert detector.to("cpu").device == torch.device("cpu")
    assert detector.info.paper.venue == "ICCV"


def test_normalised_images_are_denormalised(calibrated):
    images = images_of(spread(digits("test"), 6))
    normalised = DiffGuardDetector(calibrated, CIFAR10.mean, CIFAR10.std)(
        normalize(images, CIFAR10.mean, CIFAR10.std)
    )
    torch.testing.assert_close(normalised, DiffGuardDetector(calibrated)(images), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="mean, std: must be given together"):
        DiffGuardDetector(calibrated, mean=CIFAR10.mean).predict(images)
    with pytest.raises(
        InputError, match=r"mean, std: .* must be in \[0, 1\]; use the mean and std of the loader"
    ):
        DiffGuardDetector(calibrated, mean=CIFAR10.mean, std=CIFAR10.std).predict(images * 255)
    with pytest.raises(InputError, match=r"std=\[0, 1, 1\]: must be above 0"):
        DiffGuardDetector(calibrated, mean=CIFAR10.mean, std=[0, 1, 1]).predict(images)
