"""Each path score is what its paper defines, written down anew in float64 NumPy."""

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.definition import LatentSpace, PixelSpace
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from torch import Tensor

import diffguard_pl
from diffguard_pl import DiffGuard
from diffguard_pl.datamodules.digits import digits, held_out, photos

STEPS = 10


class Noise(NamedTuple):
    """Noise of one image at each inversion step, [S, D]: without a class, and under the label."""

    null: np.ndarray
    label: np.ndarray


@cache
def fit_images() -> Tensor:
    return digits("train").images[:60].double()


@cache
def images_to_test() -> Tensor:
    sets = (digits("test").images[:3], held_out().images[:2], photos().images[:2])
    return torch.cat(sets).double()


def ldm(**settings) -> DiffGuard:
    return diffguard_pl.load("digits_ldm", **settings).double()


def noise_along_the_inversion(model: DiffGuard, images: Tensor) -> list[Noise]:
    """Invert images by the formulas, under no class."""
    labels = model.classify(images).labels
    null = model.backbone.null_label

    def eps(x: Tensor, t: int, of: Tensor) -> Tensor:
        return model.backbone.eps(x, torch.full((len(x),), t), of)

    space = LatentSpace(eps, model.backbone.alpha_bar, STEPS, 0.0, 0.0, null)
    x, without, under = model.encode(images), [], []
    for i, t in enumerate(space.timesteps):
        e = eps(x, t, torch.full_like(labels, null))
        without.append(e.flatten(1).numpy())
        under.append(eps(x, t, labels).flatten(1).numpy())
        x = space.step(x, e, space.a_previous[i], space.a[i])
    of_images = zip(np.stack(without, axis=1), np.stack(under, axis=1), strict=True)
    return [Noise(*of_image) for of_image in of_images]


@cache
def noises(which: str) -> list[Noise]:
    images = fit_images() if which == "fit" else images_to_test()
    with torch.no_grad():
        return noise_along_the_inversion(ldm(), images)


def scores(name: str, **hyperparameters) -> np.ndarray:
    """Compute a score of the test images, fitted to the fit images."""
    model = ldm(path_scores={name: hyperparameters}, slots=5)
    model.fit_path_scores(fit_images().split(7))
    return model(images_to_test()).scores[name].numpy()


def six_sums(noise: Noise, steps: int) -> list[float]:
    eps = noise.null[:steps]
    change = steps * np.diff(eps, axis=0)
    return [(part**power).sum() for part in (eps, change) for power in (1, 2, 3)]


def norms(noise: Noise, steps: int) -> list[float]:
    return list(np.linalg.norm(noise.null[:steps], axis=1))


@pytest.mark.parametrize(("name", "features"), [("diffpath", six_sums), ("msma", norms)])
def test_log_density_of_a_mixture(name, features):
    steps, components = 4, 2
    of_fit = np.array([features(noise, steps) for noise in noises("fit")])
    of_test = np.array([features(noise, steps) for noise in noises("test")])
    centre, spread = of_fit.mean(axis=0), of_fit.std(axis=0)
    mixture = GaussianMixture(components, random_state=0).fit((of_fit - centre) / spread)
    density = sum(
        weight * multivariate_normal(mean, covariance, allow_singular=True).pdf(z)
        for z in [(of_test - centre) / spread]
        for weight, mean, covariance in zip(
            mixture.weights_, mixture.means_, mixture.covariances_, strict=True
        )
    )
    found = scores(name, steps=steps, components=components)
    is_positive = density > 0
    assert is_positive.sum() >= 4
    np.testing.assert_allclose(found[is_positive], np.log(density[is_positive]), rtol=1e-4)
    # Where the density underflows, its logarithm does not.
    assert (found[~is_positive] < -700).all()


def test_diffpath_1d_is_the_kernel_density_of_the_length_of_the_path():
    def length(noise: Noise) -> float:
        return np.sqrt(((STEPS * np.diff(noise.null, axis=0)) ** 2).sum())

    of_fit = np.array([[length(noise)] for noise in noises("fit")])
    of_test = np.array([[length(noise)] for noise in noises("test")])
    expected = KernelDensity(bandwidth=3.0).fit(of_fit).score_samples(of_test)
    np.testing.assert_allclose(scores("diffpath_1d", bandwidth=3.0), expected, rtol=1e-4)


@pytest.mark.parametrize("statistic", ["pull", "relative", "cosine", "both"])
def test_label_pull(statistic):
    expected = []
    for noise in noises("test"):
        value = []
        for i in (1, 3):
            e, p = noise.null[i], noise.label[i] - noise.null[i]
            squared = (p**2).mean()
            if statistic == "relative":
                squared /= (e**2).mean()
            angle = 1 + (p @ e) / np.linalg.norm(p) / np.linalg.norm(e)
            value.append(np.log({"cosine": angle, "both": squared * angle}.get(statistic, squared)))
        expected.append(-np.mean(value))
    # The steps are at t = 1, 101, 201, ... of 1000.
    found = scores("label_pull", times=[0.12, 0.28], statistic=statistic)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_label_pull_on_both_sides_is_the_density_of_its_logarithm():
    def log_pull(noise: Noise) -> float:
        return np.log(((noise.label[1] - noise.null[1]) ** 2).mean())

    of_fit = np.array([log_pull(noise) for noise in noises("fit")])
    of_test = np.array([log_pull(noise) for noise in noises("test")])
    z = ((of_fit - of_fit.mean()) / of_fit.std())[:, None]
    # 60 images suffice for two components in folds of 40.
    from sklearn.model_selection import KFold, cross_val_score

    folds = KFold(3, shuffle=True, random_state=0)
    components = max(
        (1, 2),
        key=lambda count: cross_val_score(
            GaussianMixture(count, random_state=0), z, cv=folds
        ).mean(),
    )
    mixture = GaussianMixture(components, random_state=0).fit(z)
    expected = mixture.score_samples(((of_test - of_fit.mean()) / of_fit.std())[:, None])
    np.testing.assert_allclose(scores("label_pull", sides="two"), expected, rtol=1e-4)


def test_the_pull_of_classifier_guidance_is_the_clean_gradient():
    model = diffguard_pl.load(
        "digits_gdm",
        path_scores={"label_pull": {"times": [0.2]}},
        compare_to="none",
        discrepancies=[],
    ).double()
    images = images_to_test()
    found = model(images)

    def eps(x: Tensor, t: int) -> Tensor:
        return model.backbone.eps(x, torch.tensor([t]), torch.tensor([0]))

    space = PixelSpace(eps, model.classifier.logits, 25, 16, 1.0, -1, 16)
    index = 5  # the step at t = 200 of 1000
    for i, image in enumerate(images):
        x = model.encode(image[None])
        for k in range(index):
            a, a_next = space.a[k], space.a[k + 1]
            e = eps(x, space.timesteps[k])
            x0 = (x - np.sqrt(1 - a) * e) / np.sqrt(a)
            if k > 0:
                x0 = x0.clamp(-1, 1)
                e = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
            x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * e
        e = eps(x, space.timesteps[index])
        gradient = space.guidance(x, e, index, int(found.labels[i]), [(0, 0, 16)])
        expected = -np.log((1 - space.a[index]) * float((gradient**2).mean()))
        assert float(found.scores["label_pull"][i]) == pytest.approx(expected, rel=1e-4)
    # The classifier is free: an evaluation of the network for each of the six steps.
    assert found.nfe.tolist() == [6] * len(images)
