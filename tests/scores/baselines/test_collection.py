"""The collection of baselines: settings, fitting, state, and what it refuses."""

import sys

import numpy as np
import pytest
import torch
from helpers.baselines import (
    IMAGES,
    LABELS,
    SINGLE,
    TRAIN,
    assert_close,
    digits_classifier,
    scores_of,
)
from safetensors.torch import load, save
from scipy.special import logsumexp, softmax
from torch import Tensor, nn

from diffguard_pl import Classifier, InputError
from diffguard_pl.classifiers.classifier import View
from diffguard_pl.scores.baselines import statistics
from diffguard_pl.scores.baselines.collection import Baselines, find
from diffguard_pl.scores.baselines.distances import ViM
from diffguard_pl.scores.baselines.names import BASELINES, DEFAULT_BASELINES

NAMES = SINGLE


@pytest.mark.parametrize("name", BASELINES)
def test_the_registry_holds_each_class_under_its_name(name: str):
    assert find(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_looks_only_at_what_it_needs(
    name: str, classifier: Classifier, fitted: Baselines, train: View, view: View
):
    needs = find(name).needs
    only = Baselines([name], classifier)
    assert only.needs_fit == ("training features" in needs)
    if "training features" in needs:
        labels = LABELS if "labels" in needs else torch.full_like(LABELS, -1)
        only.fit_features(train.features, train.logits, labels)
    nan = torch.nan
    logits = view.logits if "logits" in needs else view.logits * nan
    features = view.features if "features" in needs else view.features * nan
    images = IMAGES if "gradients" in needs else IMAGES * nan
    found = only(View(logits, features, []), images)[name]
    torch.testing.assert_close(
        found, fitted(view, IMAGES)[name], rtol=1e-5, atol=2e-3 if name == "rmds" else 2e-5
    )


def test_hyperparameters_are_openoods(classifier: Classifier, train: View, view: View):
    chosen = {
        "knn": {"K": 5},
        "energy": {"temperature": 2.0},
        "gen": {"M": 3, "gamma": 0.5},
        "msp": None,
        "ash": {"percentile": None},
        "odin": {"temperature": 1, "noise": 0.0},
    }
    module = Baselines(chosen, classifier)
    module.fit_features(train.features, train.logits, LABELS)
    scores, logits = module(view, IMAGES), view.logits.double().numpy()
    assert list(scores) == list(chosen)
    bank, queries = (nn.functional.normalize(of.features.double()) for of in (train, view))
    assert_close(
        scores["knn"], -torch.cdist(queries, bank).square().kthvalue(5, dim=1).values.numpy()
    )
    assert_close(scores["energy"], 2 * logsumexp(logits / 2, axis=1))
    p = np.sort(softmax(logits, axis=1), axis=1)[:, -3:]
    assert_close(scores["gen"], -np.sqrt(p * (1 - p)).sum(1))
    assert_close(scores["odin"], softmax(logits, axis=1).max(1))


def test_an_image_scores_the_same_in_any_batch(
    classifier: Classifier, fitted: Baselines, view: View
):
    together = fitted(view, IMAGES)
    for i in range(0, len(IMAGES), 9):
        alone = fitted(
            View(view.logits[i : i + 1], view.features[i : i + 1], []), IMAGES[i : i + 1]
        )
        for name in NAMES:
            torch.testing.assert_close(
                alone[name][0], together[name][i], rtol=1e-5, atol=2e-3 if name == "rmds" else 1e-5
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(fitted: Baselines, view: View, dtype: torch.dtype):
    plain = fitted(view, IMAGES)
    with torch.autocast("cpu", dtype):
        scores = fitted(view, IMAGES)
    assert all(torch.equal(scores[name], plain[name]) for name in NAMES)


def test_a_classifier_in_bfloat16_scores_nearly_the_same(
    fitted: Baselines, train: View, view: View
):
    classifier = digits_classifier()
    classifier.networks_to(torch.bfloat16)
    module = Baselines(NAMES, classifier)
    in_half = classifier.view(TRAIN.images)
    module.fit_features(in_half.features, in_half.logits, LABELS)
    plain, scores = fitted(view, IMAGES), module(classifier.view(IMAGES), IMAGES)
    for name in NAMES:
        assert scores[name].dtype == torch.float32
        assert np.corrcoef(plain[name].numpy(), scores[name].numpy())[0, 1] > (
            0.9 if name == "rmds" else 0.98
        ), name


def test_products_are_not_in_tf32(fitted: Baselines, view: View, monkeypatch: pytest.MonkeyPatch):
    seen, score = [], ViM.score

    def spy(*args) -> Tensor:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return score(*args)

    monkeypatch.setattr(ViM, "score", spy)
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        fitted(view, IMAGES)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert seen == [False]


def test_scores_do_not_depend_on_the_size_of_chunks(
    classifier: Classifier,
    fitted: Baselines,
    train: View,
    view: View,
    monkeypatch: pytest.MonkeyPatch,
):
    before = fitted(view, IMAGES)
    monkeypatch.setattr(statistics, "CHUNK", 64)
    module = Baselines(NAMES, classifier)
    module.fit_features(train.features, train.logits, LABELS)
    for name, score in module(view, IMAGES).items():
        torch.testing.assert_close(
            score, before[name], rtol=1e-5, atol=2e-3 if name == "rmds" else 2e-5
        )


def test_features_may_be_in_float16(
    classifier: Classifier, fitted: Baselines, train: View, view: View
):
    names = ["react", "knn", "vim", "mahalanobis"]
    module = Baselines(names, classifier)
    module.fit_features(train.features.half(), train.logits.half(), LABELS)
    for name, score in module(view, IMAGES).items():
        torch.testing.assert_close(score, fitted(view, IMAGES)[name], rtol=2e-2, atol=2e-2)


def test_features_that_are_zero_or_negative_score_finite(fitted: Baselines):
    nothing, negative = torch.zeros(128), -torch.ones(128)
    hardly_negative = torch.cat([torch.full((100,), -100.0), torch.full((28,), -1e-3)])
    scores = scores_of(fitted, torch.stack([nothing, hardly_negative, negative, 1e-20 * negative]))
    for name in NAMES:
        assert scores[name].isfinite().all(), name


def test_fitting_in_inference_mode_leaves_plain_tensors(classifier: Classifier, train: View):
    module = Baselines(NAMES, classifier)
    with torch.inference_mode():
        module.fit_features(train.features * 1, train.logits * 1, LABELS)
    assert not any(buffer.is_inference() for buffer in module.buffers())


def test_state_goes_through_safetensors(classifier: Classifier, fitted: Baselines, view: View):
    module = Baselines(NAMES, classifier)
    assert module.needs_fit
    assert not module.fitted
    module.load_state_dict(load(save(fitted.state_dict())))
    assert module.fitted
    for name, score in fitted(view, IMAGES).items():
        assert torch.equal(score, module(view, IMAGES)[name])


def test_state_holds_no_weights_of_the_classifier(classifier: Classifier, fitted: Baselines):
    assert not list(fitted.parameters())
    assert not Baselines(NAMES, classifier).state_dict()
    unfitted = Baselines(DEFAULT_BASELINES, classifier)
    assert unfitted.fitted
    assert not unfitted.needs_fit


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"react": {"percentile": 95}}, "react: percentile=95 .* fitted 90.*fit again"),
        ({"knn": {"K": 2000}}, "knn: K=2000 .* 790.*smaller K"),
        ({"vim": {"dim": 32}}, "vim: dim=32 .* fitted 64.*fit again"),
    ],
)
def test_state_of_other_hyperparameters_is_refused(
    classifier: Classifier, fitted: Baselines, hyperparameters: dict, message: str
):
    with pytest.raises(InputError, match=message):
        Baselines(dict.fromkeys(NAMES) | hyperparameters, classifier).load_state_dict(
            fitted.state_dict()
        )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mps"], "baseline 'mps'.*: msp, max_logit"),
        (["msp", "msp"], "each once"),
        ("msp", "must be a list"),
        ({"msp": {"temperature": 1}}, "msp has no hyper-parameters; remove"),
        ({"knn": {"k": 1}}, "hyper-parameter of baseline knn 'k'.*: K"),
        ({"knn": {"K": 0}}, "knn: K=0 must be a whole number"),
        ({"knn": {"K": 2.5}}, "K=2.5"),
        ({"knn": {"K": True}}, "K=True"),
        ({"knn": 0}, "knn: 0 must be a mapping"),
        ({"gen": {"gamma": float("nan")}}, "gamma=nan"),
        ({"gen": {"gamma": 0}}, "gamma=0"),
        ({"odin": {"noise": -0.1}}, "noise=-0.1"),
        ({"odin": {"temperature": float("inf")}}, "temperature=inf"),
        ({"react": {"percentile": 101}}, "percentile=101 must be 0 to 100"),
        ({"ash": {"percentile": 100}}, "percentile=100"),
        ({"ash": {"percentile": 99.9}}, r"percentile=99.9 prunes all 128 features; .*lower"),
        ({"vim": {"dim": 128}}, "dim=128 must be below .* 128"),
    ],
)
def test_wrong_settings_are_refused(classifier: Classifier, names, message: str):
    with pytest.raises(InputError, match=message):
        Baselines(names, classifier)


def test_unfitted_baselines_are_refused(classifier: Classifier, view: View):
    with pytest.raises(
        InputError, match=r"baselines: react, knn must be fitted .*data.train.*fit_baselines"
    ):
        Baselines(["msp", "react", "knn"], classifier)(view, IMAGES)


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (["knn"], lambda f, g, y: (f[:, :, None], g, y), r"features \[\d+, 128, 1\]"),
        (["knn"], lambda f, g, y: (f, g[:, :5], y), r"must be \[N, D\], \[N, 8\] and \[N\]"),
        (["knn"], lambda f, g, y: (f, g, y[1:]), "labels"),
        (["knn"], lambda f, g, y: (f[:0], g[:0], y[:0]), "no training images"),
        (["vim"], lambda f, g, y: (f[:, :5], g, y), "vim: .* 5 dimensions; must be 128"),
        (
            ["react"],
            lambda f, g, y: (f.index_fill(0, torch.tensor([1, 3]), torch.nan), g, y),
            "features of 2 training images are NaN",
        ),
        (["vim"], lambda f, g, y: (f, g / 0, y), "logits of 790 training images are NaN"),
        (
            ["knn"],
            lambda f, g, y: (f[:49], g[:49], y[:49]),
            "K=50 must be at most .*49; .*smaller K",
        ),
        (
            ["vim"],
            lambda f, g, y: (f[:60], g[:60], y[:60]),
            "dim=64 .*; .*smaller dim",
        ),
        (
            ["msp", "rmds"],
            lambda f, g, y: (f, g, torch.full_like(y, -1)),
            "rmds: training labels .*leave",
        ),
        (["mahalanobis"], lambda f, g, y: (f, g, y + 1), "0 to 7; .*labelled dataset"),
        (
            ["mahalanobis"],
            lambda f, g, y: (f[:8], g[:8], torch.arange(8)),
            "8 training images .*mean of their class; .*more images",
        ),
        (
            ["mahalanobis"],
            lambda f, g, y: (f, g, y.clamp(max=5)),
            "2 of 8 classes: 6, 7; .*every class",
        ),
    ],
)
def test_unsuitable_training_features_are_refused(
    classifier: Classifier, train: View, names: list[str], change, message: str
):
    module = Baselines(names, classifier)
    with pytest.raises(InputError, match=message):
        module.fit_features(*change(train.features, train.logits, LABELS))
    assert not module.fitted


def test_labels_are_optional_unless_needed(classifier: Classifier, train: View):
    module = Baselines(["react", "knn", "vim"], classifier)
    module.fit_features(train.features, train.logits, torch.full_like(LABELS, -1))
    assert module.fitted


class Net(nn.Module):
    """Features of 6, and what a head makes of them."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class TwoHeads(nn.Module):
    """As of a distilled ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.head_dist = nn.Linear(6, 4), nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return (self.head(x) + self.head_dist(x.flip(1))) / 2


class Tempered(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 3


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(6, 4)),
        nn.Sequential(nn.Conv2d(6, 4, 1), nn.Flatten()),
        TwoHeads(),
    ],
)
def test_a_linear_head_is_found(head: nn.Module):
    torch.manual_seed(0)
    classifier = Classifier(Net(head), input_size=16)
    weight, bias = classifier.linear_head()
    view = classifier.view(IMAGES)
    torch.testing.assert_close(view.features @ weight.T + bias, view.logits)
    module = Baselines(
        {
            "react": {"percentile": 100},
            "energy": None,
            "ash": {"percentile": 50},
            "scale": None,
            "vim": None,
        },
        classifier,
    )
    module.fit_features(view.features, view.logits, torch.full((len(IMAGES),), -1))
    scores = module(view, IMAGES)
    torch.testing.assert_close(scores["react"], scores["energy"])  # nothing is clipped
    assert module.hyperparameters["vim"]["dim"] == view.features.shape[1] // 2


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Softplus()),
            "no linear layer|are not what the linear layer",
        ),
        (
            nn.Sequential(nn.Flatten(), Tempered(6, 4)),
            "not what the linear layer head.1 gives",
        ),
    ],
)
def test_a_head_that_is_not_linear_is_refused(head: nn.Module, message: str):
    classifier = Classifier(Net(head), input_size=16)
    with pytest.raises(InputError, match=message):
        Baselines(["msp", "react"], classifier)
    Baselines([name for name in NAMES if "head" not in find(name).needs], classifier)


def test_a_classifier_without_a_linear_layer_is_refused():
    classifier = Classifier(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        input_size=16,
    )
    with pytest.raises(InputError, match=r"ash, vim .* no linear layer.*leave them out"):
        Baselines(["ash", "knn", "vim"], classifier)


OWN = """
from diffguard_pl.scores.baselines.base import Baseline
from diffguard_pl.scores.hyperparameters import positive
from dataclasses import dataclass


@dataclass(frozen=True)
class Margin(Baseline):
    name = "margin"
    needs = frozenset({"logits"})
    power: float = positive(1.0)

    def score(self, inputs, fitted):
        first, second = inputs.logits.topk(2, dim=1).values.T
        return (first - second) ** self.power


class Seconds(Margin):
    name = "seconds"


def function(logits):
    return logits
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module outside this package on Python's path."""
    (tmp_path / "my_baselines.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_baselines", None)


def test_a_baseline_by_its_import_path(own, classifier: Classifier, view: View):
    module = Baselines({"msp": None, "my_baselines.Margin": {"power": 2}}, classifier)
    assert module.names == ["msp", "margin"]
    assert module.hyperparameters["my_baselines.Margin"] == {"power": 2.0}
    first, second = view.logits.topk(2, dim=1).values.T
    torch.testing.assert_close(module(view, IMAGES)["margin"], (first - second).square())
    again = Baselines(module.hyperparameters, classifier)
    assert again.names == module.names


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_baselines.Margins", "unknown name 'Margins'.*Margin, Seconds"),
        ("my_baselines.function", "must be a subclass"),
        ("my_baselines.Seconds", "'seconds' is reserved; rename"),
        ("your_baselines.Margin", "module 'your_baselines' not found; install"),
    ],
)
def test_an_import_path_to_anything_else_is_refused(
    path: str, message: str, own, classifier: Classifier
):
    with pytest.raises(InputError, match=f"baselines: {path}.*{message}"):
        Baselines([path], classifier)
