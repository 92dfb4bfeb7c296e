"""KNN, ViM, Mahalanobis and RMDS equal their definitions in float64 NumPy, and pytorch-ood's."""

import numpy as np
import pytest
import torch
from helpers.baselines import IMAGES, LABELS, TRAIN, assert_close
from pytorch_ood import detector as theirs
from scipy.special import logsumexp
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor

from diffguard_pl import Classifier
from diffguard_pl.classifiers.classifier import View
from diffguard_pl.scores.baselines.collection import Baselines

# X: training features, x: features, W, b: the last layer; all in float64.


def knn(X, x, W, b):
    bank, queries = (a / np.linalg.norm(a, axis=1, keepdims=True) + 1e-10 for a in (X, x))
    return -np.sort(((queries[:, None] - bank) ** 2).sum(2), axis=1)[:, 49]


def vim(X, x, W, b):
    origin = -np.linalg.pinv(W) @ b
    covariance = EmpiricalCovariance(assume_centered=True).fit(X - origin).covariance_
    values, vectors = np.linalg.eigh(covariance)
    residual = vectors[:, np.argsort(-values)[64:]]  # 64: half of 128
    alpha = (X @ W.T + b).max(1).mean() / np.linalg.norm((X - origin) @ residual, axis=1).mean()
    return logsumexp(x @ W.T + b, axis=1) - alpha * np.linalg.norm((x - origin) @ residual, axis=1)


def gaussian(x, mean, precision):
    return -np.einsum("nd,de,ne->n", x - mean, precision, x - mean)


def mahalanobis(X, x, W, b):
    means = np.stack([X[LABELS.numpy() == c].mean(0) for c in range(8)])
    precision = EmpiricalCovariance().fit(X - means[LABELS.numpy()]).precision_
    return np.max([gaussian(x, mean, precision) for mean in means], axis=0)


def rmds(X, x, W, b):
    precision = EmpiricalCovariance().fit(X - X.mean(0)).precision_
    return mahalanobis(X, x, W, b) - gaussian(x, X.mean(0), precision)


@pytest.mark.parametrize("definition", [knn, vim, mahalanobis, rmds])
def test_score_equals_its_definition(
    definition, classifier: Classifier, fitted: Baselines, train: View, view: View
):
    W, b = (part.double().numpy() for part in classifier.linear_head())
    expected = definition(train.features.double().numpy(), view.features.double().numpy(), W, b)
    # rmds is the difference of two numbers of thousands.
    atol = 2e-3 if definition is rmds else 2e-5
    assert_close(fitted(view, IMAGES)[definition.__name__], expected, atol=atol)


def test_scores_are_pytorch_oods(
    classifier: Classifier, fitted: Baselines, train: View, view: View
):
    scores = fitted(view, IMAGES)
    weight, bias = classifier.linear_head()

    def expected(detector) -> np.ndarray:
        fitted = detector.fit_features(train.features, LABELS)
        return -fitted.predict_features(view.features).numpy()

    assert_close(scores["knn"], -(expected(theirs.KNN(None)) ** 2))
    # pytorch-ood's covariances are in float32; Mahalanobis' is not divided by N.
    assert_close(scores["vim"], expected(theirs.ViM(None, 64, weight, bias)), rtol=1e-3, atol=0.05)
    ours_scaled = 2 * len(LABELS) * expected(theirs.Mahalanobis(None))
    assert_close(scores["mahalanobis"], ours_scaled, rtol=1e-2)


def test_knn_of_a_training_image_is_exact(classifier: Classifier, train: View):
    module = Baselines({"knn": {"K": 1}}, classifier)
    module.fit_features(train.features, train.logits, LABELS)
    assert (module(train, TRAIN.images)["knn"] > -1e-12).all()


def test_knn_keeps_features_of_half_precision_in_it(classifier: Classifier, train: View):
    module = Baselines(["knn"], classifier)
    module.fit_features(train.features.half(), train.logits, LABELS)
    assert module.knn_bank.dtype == torch.float16


def test_collinear_features_have_a_mahalanobis_distance(
    classifier: Classifier, train: View, view: View
):
    def twice(features: Tensor) -> Tensor:
        return features[:, :64].repeat(1, 2)

    module = Baselines(["mahalanobis", "rmds"], classifier)
    module.fit_features(twice(train.features), train.logits, LABELS)
    assert module.class_whitening.shape[1] == 64
    X, x = (twice(of.features).double().numpy() for of in (train, view))
    scores = module(View(view.logits, twice(view.features), []), IMAGES)
    assert_close(scores["mahalanobis"], mahalanobis(X, x, None, None), rtol=1e-4)
