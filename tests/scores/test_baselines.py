"""Scores of the classifier alone are OpenOOD's: each is held against its definition, written here in float64 NumPy."""

import numpy as np
import pytest
import torch
from pytorch_ood.detector import KNN, ODIN, ViM
from pytorch_ood.detector import Mahalanobis as TheirMahalanobis
from safetensors.torch import load, save
from scipy.special import logsumexp, softmax
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor, nn

from diffguard_pl import Classifier, InputError
from diffguard_pl.classifiers.classifier import View
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.digits import digits, photos
from diffguard_pl.scores.baselines import collection as baselines
from diffguard_pl.scores.baselines.collection import (
    DEFAULT,
    NAMES,
    NEEDS_FIT,
    Baselines,
    logit_baselines,
    percentile,
)

HALF = (0.5, 0.5, 0.5)
TRAIN = digits("train")
LABELS = torch.tensor(TRAIN.labels)
IMAGES = torch.cat([digits("test").images[:40], photos(40).images])


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(SmallResNet(), "digits_classifier", input_size=16, mean=HALF, std=HALF)


@pytest.fixture(scope="module")
def train(classifier: Classifier) -> View:
    return classifier.view(TRAIN.images)


@pytest.fixture(scope="module")
def fitted(classifier: Classifier, train: View) -> Baselines:
    module = Baselines(NAMES, classifier)
    module.fit_features(train.features, train.logits, LABELS)
    return module


@pytest.fixture(scope="module")
def view(classifier: Classifier) -> View:
    return classifier.view(IMAGES)


def scores_of(module: Baselines, features: Tensor) -> dict[str, Tensor]:
    """Of features that no image needs to have."""
    weight, bias = module._classifier[0].linear_head()
    return module(
        View(features @ weight.T + bias, features, []), torch.full((len(features), 3, 16, 16), 0.5)
    )


# The definitions. X: training features, x: features, W, b: the last layer; all in float64.


def kept(x: np.ndarray, percent: float) -> np.ndarray:
    """Which of each row's features are among those above the percentile."""
    count = x.shape[1] - round(x.shape[1] * percent / 100)
    largest = np.argsort(-x, axis=1, kind="stable")[:, :count]
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, largest, True, axis=1)
    return mask


def react(X, x, W, b):
    return logsumexp(np.minimum(x, np.percentile(X, 90)) @ W.T + b, axis=1)


def ash(X, x, W, b):
    mask = kept(x, 90)
    return logsumexp(mask * (x.sum(1) / mask.sum(1))[:, None] @ W.T + b, axis=1)


def scale(X, x, W, b):
    ratio = x.sum(1) / (x * kept(x, 85)).sum(1)
    return logsumexp(x * np.exp(ratio)[:, None] @ W.T + b, axis=1)


def knn(X, x, W, b):
    bank, queries = (a / np.linalg.norm(a, axis=1, keepdims=True) + 1e-10 for a in (X, x))
    return -np.sort(((queries[:, None] - bank) ** 2).sum(2), axis=1)[:, 49]


def vim(X, x, W, b):
    origin = -np.linalg.pinv(W) @ b
    values, vectors = np.linalg.eigh(
        EmpiricalCovariance(assume_centered=True).fit(X - origin).covariance_
    )
    residual = vectors[:, np.argsort(-values)[64:]]  # 64: half of 128
    alpha = (X @ W.T + b).max(1).mean() / np.linalg.norm((X - origin) @ residual, axis=1).mean()
    return logsumexp(x @ W.T + b, axis=1) - alpha * np.linalg.norm((x - origin) @ residual, axis=1)


def gaussian(x, mean, precision):
    return -np.einsum("nd,de,ne->n", x - mean, precision, x - mean)


def mahalanobis(X, x, W, b):
    means = np.stack([X[LABELS.numpy() == c].mean(0) for c in range(len(b))])
    precision = EmpiricalCovariance().fit(X - means[LABELS.numpy()]).precision_
    return np.max([gaussian(x, mean, precision) for mean in means], axis=0)


def rmds(X, x, W, b):
    return mahalanobis(X, x, W, b) - gaussian(
        x, X.mean(0), EmpiricalCovariance().fit(X - X.mean(0)).precision_
    )


def gen(logits):
    p = np.sort(softmax(logits, axis=1), axis=1)[:, -100:]
    return -(p**0.1 * (1 - p) ** 0.1).sum(1)


OF_LOGITS = {
    "msp": lambda logits: softmax(logits, axis=1).max(1),
    "max_logit": lambda logits: logits.max(1),
    "energy": lambda logits: logsumexp(logits, axis=1),
    "entropy": lambda logits: (softmax(logits, axis=1) * np.log(softmax(logits, axis=1))).sum(1),
    "gen": gen,
}
OF_FEATURES = {f.__name__: f for f in (react, ash, scale, knn, vim, mahalanobis, rmds)}


def close(score: Tensor, expected: np.ndarray, rtol: float = 2e-5, atol: float = 2e-5) -> None:
    assert score.dtype == torch.float32
    np.testing.assert_allclose(score.numpy(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_logits(name: str, fitted: Baselines, view: View):
    close(fitted(view, IMAGES)[name], OF_LOGITS[name](view.logits.double().numpy()))


@pytest.mark.parametrize("name", OF_FEATURES)
def test_features(name: str, classifier: Classifier, fitted: Baselines, train: View, view: View):
    weight, bias = (part.double().numpy() for part in classifier.linear_head())
    expected = OF_FEATURES[name](
        train.features.double().numpy(), view.features.double().numpy(), weight, bias
    )
    # rmds: what is left of two numbers of thousands
    close(fitted(view, IMAGES)[name], expected, atol=2e-3 if name == "rmds" else 2e-5)


def test_odin_moves_normalised_images_by_noise_over_std():
    mean, std = (
        torch.tensor([0.4, 0.5, 0.3]).view(1, 3, 1, 1),
        torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1),
    )
    torch.manual_seed(0)
    model = SmallResNet().eval()
    classifier = Classifier(model, input_size=16, mean=(0.4, 0.5, 0.3), std=(0.2, 0.5, 0.3))
    images = photos(8).images.clone()
    normalised = ((images - mean) / std).requires_grad_()
    logits = model(normalised)
    nn.CrossEntropyLoss()(logits / 1000, logits.argmax(1)).backward()
    moved = normalised.detach() - 0.0014 * (2.0 * (normalised.grad >= 0) - 1) / std
    expected = softmax(model(moved).detach().double().numpy() / 1000, axis=1).max(1)
    close(
        Baselines(["odin"], classifier)(classifier.view(images), images)["odin"],
        expected,
        rtol=3e-7,
        atol=0,
    )


def test_odin_moves_what_the_classifier_sees(classifier: Classifier):
    large = nn.functional.interpolate(IMAGES[:4], size=(40, 40), mode="bilinear")
    small = classifier.fit(large)
    odin = Baselines(["odin"], classifier)
    close(
        odin(classifier.view(large), large)["odin"],
        odin(classifier.view(small), small)["odin"].numpy(),
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
    close(scores["knn"], -torch.cdist(queries, bank).square().kthvalue(5, dim=1).values.numpy())
    close(scores["energy"], 2 * logsumexp(logits / 2, axis=1))
    p = np.sort(softmax(logits, axis=1), axis=1)[:, -3:]
    close(scores["gen"], -np.sqrt(p * (1 - p)).sum(1))
    close(scores["odin"], softmax(logits, axis=1).max(1))


def test_pytorch_ood_agrees_where_it_is_not_used(
    classifier: Classifier, fitted: Baselines, train: View, view: View
):
    scores = fitted(view, IMAGES)
    close(
        scores["knn"],
        -KNN(None)
        .fit_features(train.features, LABELS)
        .predict_features(view.features)
        .square()
        .numpy(),
    )
    weight, bias = classifier.linear_head()
    close(
        scores["vim"],
        -ViM(None, 64, weight, bias)
        .fit_features(train.features, LABELS)
        .predict_features(view.features)
        .numpy(),
        rtol=1e-3,
        atol=0.05,  # its covariances are in float32
    )
    theirs = (
        TheirMahalanobis(None).fit_features(train.features, LABELS).predict_features(view.features)
    )
    close(scores["mahalanobis"], -2 * len(LABELS) * theirs.numpy(), rtol=1e-2)
    close(scores["odin"], -ODIN(classifier).predict(IMAGES).numpy(), rtol=3e-7, atol=0)


def test_yardsticks_are_the_default_scores(fitted: Baselines, view: View):
    scores = fitted(view, IMAGES)
    of_logits = logit_baselines(view.logits)
    assert list(of_logits) == DEFAULT
    for name in DEFAULT:
        assert torch.equal(of_logits[name], scores[name])


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
    classifier = Classifier(SmallResNet(), "digits_classifier", input_size=16, mean=HALF, std=HALF)
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
    seen, head = [], fitted._head()
    monkeypatch.setattr(
        Baselines, "_head", lambda _: seen.append(torch.backends.cuda.matmul.allow_tf32) or head
    )
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        fitted(view, IMAGES)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert seen
    assert not any(seen)


def test_features_are_read_in_parts(
    classifier: Classifier,
    fitted: Baselines,
    train: View,
    view: View,
    monkeypatch: pytest.MonkeyPatch,
):
    before = fitted(view, IMAGES)
    monkeypatch.setattr(baselines, "ROWS", 64)
    module = Baselines(NAMES, classifier)
    module.fit_features(train.features, train.logits, LABELS)
    for name, score in module(view, IMAGES).items():
        torch.testing.assert_close(
            score, before[name], rtol=1e-5, atol=2e-3 if name == "rmds" else 2e-5
        )


def test_features_may_be_in_float16(
    classifier: Classifier, fitted: Baselines, train: View, view: View
):
    names = [*NEEDS_FIT - {"rmds"}]
    module = Baselines(names, classifier)
    module.fit_features(train.features.half(), train.logits.half(), LABELS)
    assert module.knn_bank.dtype == torch.float16
    for name, score in module(view, IMAGES).items():
        torch.testing.assert_close(score, fitted(view, IMAGES)[name], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("percent", [0, 12.5, 33.3, 50, 90, 99.99, 100])
@pytest.mark.parametrize(
    "values",
    [
        torch.randn(300, 70),
        torch.rand(3, 7) - 1,
        torch.zeros(4, 4),
        torch.randn(300, 70).half().relu(),
    ],
)
def test_percentile_is_numpys(values: Tensor, percent: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(baselines, "ROWS", 128)
    assert percentile(values, percent).item() == pytest.approx(
        np.percentile(values.double().numpy(), percent), rel=1e-6
    )


def test_features_that_are_zero_or_negative_score_finite(fitted: Baselines):
    nothing, negative = torch.zeros(128), -torch.ones(128)
    hardly_negative = torch.cat([torch.full((100,), -100.0), torch.full((28,), -1e-3)])
    scores = scores_of(fitted, torch.stack([nothing, hardly_negative, negative, 1e-20 * negative]))
    for name in NAMES:
        assert scores[name].isfinite().all(), name
    # without a scale that could be computed, features are left as they are
    assert torch.equal(scores["scale"][:2], scores["energy"][:2])


def test_knn_of_a_training_image_is_exact(classifier: Classifier, train: View):
    module = Baselines({"knn": {"K": 1}}, classifier)
    module.fit_features(train.features, train.logits, LABELS)
    assert (module(train, TRAIN.images)["knn"] > -1e-12).all()


def test_collinear_features_have_a_mahalanobis_distance(
    classifier: Classifier, train: View, view: View
):
    def twice(features: Tensor) -> Tensor:
        return features[:, :64].repeat(1, 2)

    module = Baselines(["mahalanobis", "rmds"], classifier)
    module.fit_features(twice(train.features), train.logits, LABELS)
    assert module.class_whitening.shape[1] == 64
    X, x = (twice(of.features).double().numpy() for of in (train, view))
    close(
        module(View(view.logits, twice(view.features), []), IMAGES)["mahalanobis"],
        mahalanobis(X, x, None, np.zeros(8)),
        rtol=1e-4,
    )


def test_odin_leaves_no_gradients(classifier: Classifier):
    with torch.inference_mode():
        images = IMAGES[:4] * 1
        scores = Baselines(["odin"], classifier)(classifier.view(images), images)
    assert scores["odin"].isfinite().all()
    assert all(weights.grad is None for weights in classifier.parameters())
    close(
        scores["odin"],
        Baselines(["odin"], classifier)(classifier.view(IMAGES[:4]), IMAGES[:4])["odin"].numpy(),
        rtol=0,
        atol=0,
    )


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
    unfitted = Baselines(DEFAULT, classifier)
    assert unfitted.fitted
    assert not unfitted.needs_fit


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"react": {"percentile": 95}}, "react: was fitted with percentile=90"),
        ({"knn": {"K": 2000}}, "knn: was fitted to .* images"),
        ({"vim": {"dim": 32}}, "vim: was fitted with dim=64"),
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
        (["mps"], "no baseline 'mps'; there are: msp, max_logit"),
        (["msp", "msp"], "each once"),
        ("msp", "expected a list"),
        ({"msp": {"temperature": 1}}, "msp: has no hyper-parameters"),
        ({"knn": {"k": 1}}, "no hyper-parameter of baseline knn 'k'; there are: K"),
        ({"knn": {"K": 0}}, "knn: K=0; expected a whole number"),
        ({"knn": {"K": 2.5}}, "K=2.5"),
        ({"knn": {"K": True}}, "K=True"),
        ({"knn": 0}, "expected hyper-parameters by name"),
        ({"gen": {"gamma": float("nan")}}, "gamma=nan"),
        ({"gen": {"gamma": 0}}, "gamma=0"),
        ({"odin": {"noise": -0.1}}, "noise=-0.1"),
        ({"odin": {"temperature": float("inf")}}, "temperature=inf"),
        ({"react": {"percentile": 101}}, "percentile=101; expected 0 to 100"),
        ({"ash": {"percentile": 100}}, "percentile=100"),
        ({"ash": {"percentile": 99.9}}, "leaves none of the 128 features"),
        ({"vim": {"dim": 128}}, "dim=128: expected less than the number of features, 128"),
    ],
)
def test_what_is_given_wrongly(classifier: Classifier, names, message: str):
    with pytest.raises(InputError, match=message):
        Baselines(names, classifier)


def test_unfitted(classifier: Classifier, view: View):
    with pytest.raises(
        InputError,
        match=r"baselines react, knn: not fitted .* set data.train, or call DiffGuard.fit",
    ):
        Baselines(["msp", "react", "knn"], classifier)(view, IMAGES)


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (["knn"], lambda f, g, y: (f[:, :, None], g, y), r"features \[\d+, 128, 1\]"),
        (["knn"], lambda f, g, y: (f, g[:, :5], y), r"expected \[N, D\], \[N, 8\], \[N\]"),
        (["knn"], lambda f, g, y: (f, g, y[1:]), "labels"),
        (["knn"], lambda f, g, y: (f[:0], g[:0], y[:0]), "no images"),
        (["vim"], lambda f, g, y: (f[:, :5], g, y), "5 features an image; the classifier has 128"),
        (
            ["react"],
            lambda f, g, y: (f.index_fill(0, torch.tensor([1, 3]), torch.nan), g, y),
            "features of 2 images are NaN",
        ),
        (["vim"], lambda f, g, y: (f, g / 0, y), "logits of .* images are NaN"),
        (["knn"], lambda f, g, y: (f[:49], g[:49], y[:49]), "K=50, and there are 49 images"),
        (
            ["vim"],
            lambda f, g, y: (f[:60], g[:60], y[:60]),
            "outside their 64 principal directions",
        ),
        (
            ["msp", "rmds"],
            lambda f, g, y: (f, g, torch.full_like(y, -1)),
            "baselines rmds: need the label of every image",
        ),
        (["mahalanobis"], lambda f, g, y: (f, g, y + 1), "0 to 7; .* have none"),
        (
            ["mahalanobis"],
            lambda f, g, y: (f[:8], g[:8], torch.arange(8)),
            "8 images .* mean features of their classes",
        ),
        (
            ["mahalanobis"],
            lambda f, g, y: (f, g, y.clamp(max=5)),
            "no image to fit to of 2 of 8 classes: 6, 7; give",
        ),
    ],
)
def test_what_cannot_be_fitted_to(
    classifier: Classifier, train: View, names: list[str], change, message: str
):
    module = Baselines(names, classifier)
    with pytest.raises(InputError, match=message):
        module.fit_features(*change(train.features, train.logits, LABELS))
    assert not module.fitted


def test_labels_are_not_asked_for_without_need(classifier: Classifier, train: View):
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
def test_heads_that_are_linear(head: nn.Module):
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
            "has no linear layer that gives its logits|are not what its layer",
        ),
        (
            nn.Sequential(nn.Flatten(), Tempered(6, 4)),
            "not what its layer head.1 gives of the features",
        ),
    ],
)
def test_heads_that_are_not(head: nn.Module, message: str):
    classifier = Classifier(Net(head), input_size=16)
    with pytest.raises(InputError, match=message):
        Baselines(["msp", "react"], classifier)
    Baselines([name for name in NAMES if name not in baselines.NEEDS_HEAD], classifier)


def test_a_classifier_without_a_linear_layer():
    classifier = Classifier(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        input_size=16,
    )
    with pytest.raises(InputError, match="baselines ash, vim: the classifier has no linear layer"):
        Baselines(["ash", "knn", "vim"], classifier)
