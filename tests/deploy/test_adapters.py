"""The detector where OpenOOD and pytorch-ood take one of theirs."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from pytorch_ood.api import RequiresFittingException
from pytorch_ood.benchmark import Benchmark
from pytorch_ood.metrics import OODMetrics
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.transforms.v2.functional import normalize, resize

import diffguard_pl
from diffguard_pl import Detector, InputError
from diffguard_pl.classifiers.resnets import CIFAR10
from diffguard_pl.config import find_config, read
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out
from diffguard_pl.deploy.for_openood import DiffGuardPostprocessor
from diffguard_pl.deploy.for_pytorch_ood import DiffGuardDetector
from diffguard_pl.scores.combination import Cascade

HALF = [0.5, 0.5, 0.5]
FAST = {
    "steps": 4,
    "early_stop_steps": 1,
    "skip_first_steps": 1,
    "skip_last_steps": 1,
    "discrepancies": ["maps"],
}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """The file of a detector of digits."""
    detector = Detector(diffguard_pl.load("digits_ldm", **FAST, baselines=["msp"]))
    detector.calibrate(DataLoader(spread(digits("val"), 40), 20))
    detector.settings = read(find_config("digits_ldm"))["model"] | FAST | {"baselines": ["msp"]}
    return detector.save(tmp_path_factory.mktemp("detector") / "detector.json")


class OfOpenOOD(Dataset):
    """Items as its loaders give them: normalised, under other names."""

    def __init__(self, data, mean=HALF, std=HALF, size=16):
        self.data, self.mean, self.std, self.size = data, mean, std, size

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image = resize(self.data[index]["image"], [self.size, self.size])
        return {"data": normalize(image, self.mean, self.std), "label": self.data[index]["label"]}


class OfPytorchOOD(Dataset):
    """Pairs, as its data sets give them."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]["image"], self.data[index]["label"]


def images_of(data) -> Tensor:
    return torch.stack([item["image"] for item in data])


def test_openood_scores_and_predictions_are_the_detectors(calibrated):
    method, detector = (
        DiffGuardPostprocessor(calibrated, CIFAR10.mean, CIFAR10.std),
        Detector.load(calibrated),
    )
    data = spread(digits("test"), 30)
    pred, conf, label = method.inference(
        None, DataLoader(OfOpenOOD(data, CIFAR10.mean, CIFAR10.std), 7), progress=False
    )
    expected = detector.predict(images_of(data))
    assert all(isinstance(part, np.ndarray) and part.shape == (30,) for part in (pred, conf, label))
    np.testing.assert_array_equal(pred, expected.labels)
    np.testing.assert_array_equal(label, [item["label"] for item in data])
    np.testing.assert_allclose(conf, expected.scores, atol=1e-5)
    batch = next(iter(DataLoader(OfOpenOOD(data, CIFAR10.mean, CIFAR10.std), 5)))["data"]
    pred, conf = method.postprocess(None, batch)
    torch.testing.assert_close(conf, expected.scores[:5], atol=1e-5, rtol=0)
    assert torch.equal(pred, expected.labels[:5])


def test_openood_in_distribution_is_higher(calibrated):
    method = DiffGuardPostprocessor(calibrated, HALF, HALF)
    of = [
        method.inference(None, DataLoader(OfOpenOOD(spread(data, 40)), 16), False)[1]
        for data in (digits("test"), held_out())
    ]
    assert roc_auc_score(np.repeat([1, 0], 40), np.concatenate(of)) > 0.95


def test_openood_images_of_another_size_are_brought_to_the_models(calibrated):
    method = DiffGuardPostprocessor(calibrated, HALF, HALF)
    data = spread(digits("test"), 8)
    large = method.inference(None, DataLoader(OfOpenOOD(data, size=48), 4), False)[1]
    np.testing.assert_allclose(
        large, method.inference(None, DataLoader(OfOpenOOD(data), 4), False)[1], atol=0.05
    )


def test_openood_setup_calibrates_what_is_not_yet():
    model = diffguard_pl.load("digits_ldm", **FAST, baselines={"knn": {"K": 5}})
    method = DiffGuardPostprocessor(Detector(model), HALF, HALF)
    loaders = {
        part: DataLoader(OfOpenOOD(spread(digits(part), 60)), 20) for part in ("train", "val")
    }
    method.setup(model.classifier.model, loaders, {})
    assert model.baselines.fitted
    by_hand = Detector(model).calibrate([images_of(spread(digits("val"), 60))])
    assert method.detector.threshold == pytest.approx(by_hand.threshold, abs=1e-5)
    assert (method.APS_mode, method.hyperparam_search_done, method.args_dict) == (False, True, {})


def test_openood_setup_leaves_a_calibrated_detector_as_it_is(calibrated):
    method = DiffGuardPostprocessor(calibrated, HALF, HALF)
    before = method.detector.threshold
    method.setup(
        method.detector.model.classifier.model,
        {"val": DataLoader(OfOpenOOD(spread(digits("test"), 20)), 20)},
        {},
    )
    assert method.detector.threshold == before


def test_openood_setup_says_when_the_classifier_is_another_one(calibrated):
    method = DiffGuardPostprocessor(calibrated, HALF, HALF)
    net = torch.nn.Sequential(method.detector.model.classifier.model, _Swapped())
    with pytest.raises(InputError, match=r"agree on 0 of 20 images; use a detector of this net"):
        method.setup(net, {"val": DataLoader(OfOpenOOD(spread(digits("val"), 20)), 20)}, {})


class _Swapped(torch.nn.Module):
    def forward(self, logits):
        return logits.roll(1, dims=1)


def test_openoods_evaluator_takes_it_for_one_of_its_own(calibrated, monkeypatch):
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


def test_pytorch_oods_metrics_and_benchmarks_take_it(calibrated):
    detector = DiffGuardDetector(calibrated)
    ind, ood = (OfPytorchOOD(spread(data, 30)) for data in (digits("test"), held_out()))

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


def test_pytorch_oods_methods():
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
    val = ConcatDataset(
        [OfPytorchOOD(spread(digits("val"), 50)), OfPytorchOOD(spread(held_out(), 5))]
    )
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


def test_pytorch_ood_images_that_its_transform_has_normalised(calibrated):
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
