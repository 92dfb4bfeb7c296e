"""Scores with evaluations of their own are what their papers define, anew in float64 NumPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.dense import CLASSES, SIDE, Dense, dense_diffguard, levels, noise, noised
from scipy.stats import norm
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

from diffguard_pl import DiffGuard
from diffguard_pl.errors import InputError
from diffguard_pl.scores.path.network_features import CFS

DENSE = Dense()
FIT, TESTED = 40, 6


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIDE, SIDE, generator=generator, dtype=torch.double)


FIT_IMAGES, IMAGES = images(FIT, 1), images(TESTED, 2)


def model_with(name: str, **hyperparameters) -> DiffGuard:
    model = dense_diffguard(path_scores={name: hyperparameters}, slots=4)
    model.fit_path_scores(FIT_IMAGES.split(7))
    return model


def scores(name: str, **hyperparameters) -> tuple[np.ndarray, int]:
    """Return a score of the images, and the evaluations of each."""
    detection = model_with(name, **hyperparameters)(IMAGES)
    (nfe,) = set(detection.nfe.tolist())
    return detection.scores[name].numpy(), nfe


def states(batch: Tensor) -> np.ndarray:
    """Return x [N, D] of images: the pixels in [-1, 1]."""
    return batch.flatten(1).numpy() * 2 - 1


def pixels(x: np.ndarray) -> np.ndarray:
    return np.clip((x + 1) / 2, 0, 1)


def denoise(x: np.ndarray, timesteps: list[int], eps) -> np.ndarray:
    """DDIM along the timesteps, then to the clean image."""
    for i, t in enumerate(timesteps):
        a, b = levels(t)
        e = eps(x, t)
        x0 = (x - b * e) / a
        a_to, b_to = levels(timesteps[i + 1]) if i + 1 < len(timesteps) else (1.0, 0.0)
        x = a_to * x0 + b_to * e
    return x


def z_scores(of_fit: list, of_tested: list) -> np.ndarray:
    of_fit, of_tested = np.array(of_fit), np.array(of_tested)
    return (of_tested - of_fit.mean(axis=0)) / of_fit.std(axis=0)


def sum_of_kernel_densities(of_fit: list, of_tested: list, weights=None) -> np.ndarray:
    """Sum of log kernel densities of each feature, standardised, with Scott's bandwidth."""
    of_fit, of_tested = np.array(of_fit), np.array(of_tested)
    total = np.zeros(len(of_tested))
    for k in range(of_fit.shape[1]):
        centre, spread = of_fit[:, k].mean(), of_fit[:, k].std()
        density = KernelDensity(bandwidth=FIT ** (-1 / 5), rtol=1e-12)
        density.fit((of_fit[:, k : k + 1] - centre) / spread)
        log_density = density.score_samples((of_tested[:, k : k + 1] - centre) / spread)
        total += log_density * (1 if weights is None else weights[k])
    return total


def test_ddpm_ood():
    def errors(x: np.ndarray) -> list[float]:
        found = []
        for draw, timesteps in enumerate(([100], [300, 200, 100])):
            back = denoise(noised(x, timesteps[0], draw), timesteps, DENSE.eps)
            found.append(((pixels(back) - pixels(x)) ** 2).mean())
        return found

    expected = -z_scores(
        [errors(x) for x in states(FIT_IMAGES)], [errors(x) for x in states(IMAGES)]
    ).mean(axis=1)
    found, nfe = scores("ddpm_ood", times=[0.1, 0.3], steps=10)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert nfe == 1 + 3


@pytest.mark.parametrize("compare", ["logits", "probabilities"])
@pytest.mark.parametrize(("settings", "beta"), [({"scale": 1.0}, 0.0), ({}, 2.0)])
def test_diffnb(compare, settings, beta):
    settings = settings | {"times": [0.2], "repeats": 2, "steps": 10, "compare": compare}
    model = model_with("diffnb", **settings)

    def answer(of: np.ndarray) -> np.ndarray:
        logits = model.classifier.view(torch.from_numpy(of).view(1, 3, SIDE, SIDE)).logits[0]
        logits = logits.detach().numpy()
        if compare == "logits":
            return logits / np.linalg.norm(logits)
        return np.exp(logits) / np.exp(logits).sum()

    expected = []
    for x in states(IMAGES):
        before, distances = answer(pixels(x)), []
        label = int(model.classify(torch.from_numpy(pixels(x)).view(1, 3, SIDE, SIDE)).labels)

        def guided(x: np.ndarray, t: int, label: int = label) -> np.ndarray:
            return (1 + beta) * DENSE.eps(x, t, label) - beta * DENSE.eps(x, t)

        for draw in range(2):
            after = answer(pixels(denoise(noised(x, 200, draw), [200, 100], guided)))
            distances.append(np.abs(after - before).sum())
        expected.append(-np.mean(distances))
    detection = model(IMAGES)
    np.testing.assert_allclose(detection.scores["diffnb"], expected, rtol=1e-4)
    assert detection.nfe.tolist() == [2 * 2 * (1 if beta == 0 else 2)] * TESTED


def test_projection_regret():
    def projected(x: np.ndarray, t: int, draw: int) -> np.ndarray:
        return denoise(noised(x, t, draw), [t], DENSE.eps)

    expected = []
    for x in states(IMAGES):
        regrets = []
        for draw in range(3):
            once = projected(x, 300, 2 * draw)
            twice = projected(once, 100, 2 * draw + 1)
            seen = [pixels(part) for part in (x, once, twice)]
            first, second = (((b - a) ** 2).mean() for a, b in pairwise(seen))
            regrets.append(first - second)
        expected.append(-np.mean(regrets))
    found, nfe = scores("projection_regret", time=0.3, second_time=0.1, repeats=3)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert nfe == 6


def test_lmd():
    steps, squares, repeats = 4, 2, 3
    timesteps = [999, 749, 500, 250]
    quarter = np.indices((3, SIDE, SIDE))[1:] // (SIDE // squares)
    board = quarter.sum(axis=0).reshape(-1) % 2

    def inpainted(x: np.ndarray, repeat: int) -> np.ndarray:
        known, draw = board == repeat % 2, 3 * steps * repeat
        state = noise(draw)
        for i, t in enumerate(timesteps):
            a, b = levels(t)
            draw += 1
            state = np.where(known, a * x + b * noise(draw), state)
            x0 = (state - b * DENSE.eps(state, t)) / a
            if i + 1 == steps:
                return np.where(known, x, x0)
            # The posterior by the product of q(x_to | x0) and q(x_t | x_to), both Gaussian.
            a_to, b_to = levels(timesteps[i + 1])
            keep = a / a_to
            precision = 1 / b_to**2 + keep**2 / (1 - keep**2)
            mean = (a_to * x0 / b_to**2 + keep * state / (1 - keep**2)) / precision
            draw += 1
            state = mean + precision**-0.5 * noise(draw)
        raise AssertionError

    expected = [
        -np.median([((pixels(inpainted(x, r)) - pixels(x)) ** 2).mean() for r in range(repeats)])
        for x in states(IMAGES)
    ]
    found, nfe = scores("lmd", squares=squares, repeats=repeats, steps=steps)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert nfe == repeats * steps


def test_gepc():
    def flipped(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        return np.flip(x.reshape(3, SIDE, SIDE), axes).reshape(-1)

    def gaps(x: np.ndarray) -> list[float]:
        found = []
        for draw, signal in enumerate((0.997, 0.97)):
            t = int(np.abs([levels(t)[0] - signal for t in range(1000)]).argmin())
            state = noised(x, t, draw)
            eps = DENSE.eps(state, t)
            gap = np.mean(
                [
                    ((flipped(DENSE.eps(flipped(state, axes), t), axes) - eps) ** 2).mean()
                    for axes in ((2,), (1,), (1, 2))
                ]
            )
            found.append(gap / ((eps**2).mean() + 1e-6))
        return found

    of_fit = np.array([gaps(x) for x in states(FIT_IMAGES)])
    expected = sum_of_kernel_densities(
        of_fit,
        [gaps(x) for x in states(IMAGES)],
        weights=of_fit.mean(axis=0) / of_fit.std(axis=0),
    )
    found, nfe = scores("gepc", signals=[0.997, 0.97])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert nfe == 8


def test_scoped():
    times = (0.1, 0.3)

    def ratios(x: np.ndarray) -> list[float]:
        found = []
        for draw, time in enumerate(times):
            t = round(time * 999)
            state, b = noised(x, t, draw), levels(t)[1]
            v = np.sign(noise(len(times) + draw))
            score = -DENSE.eps(state, t) / b
            trace = v @ (-DENSE.jacobian(state, t) / b) @ v
            found.append(score @ score / trace)
        return found

    expected = sum_of_kernel_densities(
        [ratios(x) for x in states(FIT_IMAGES)], [ratios(x) for x in states(IMAGES)]
    )
    found, nfe = scores("scoped", times=list(times))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert nfe == 4


def test_eigenscore():
    times, iterations = (0.1, 0.3), 3

    def eigenvalues(x: np.ndarray) -> list[float]:
        found = []
        for time in times:
            t = round(time * 999)
            a, b = levels(t)
            of_draws = []
            for draw in range(2):
                # dD/dy with y = x_t / a, D = y - (b / a) eps(a y).
                derivative = np.eye(3 * SIDE * SIDE) - b * DENSE.jacobian(noised(x, t, draw), t)
                v = noise(2 + draw)
                for _ in range(iterations):
                    v = v / np.linalg.norm(v)
                    eigenvalue, v = v @ derivative @ v, derivative @ v
                of_draws.append(eigenvalue * (b / a) ** 2)
            found.append(np.mean(of_draws))
        return found

    expected = -z_scores(
        [eigenvalues(x) for x in states(FIT_IMAGES)], [eigenvalues(x) for x in states(IMAGES)]
    ).sum(axis=1)
    found, nfe = scores("eigenscore", times=list(times), draws=2, iterations=iterations, step=1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert nfe == 2 * iterations * 2 * len(times)


def test_nll():
    timesteps = [0, 250, 500, 749, 999]

    def log_density(x: np.ndarray) -> float:
        a, b = levels(0)
        y, total = x / a, 0.0
        for draw, (t, to) in enumerate(pairwise(timesteps)):
            a, b = levels(t)
            a_to, b_to = levels(to)
            growth, v = b_to / a_to - b / a, np.sign(noise(draw))
            total += growth * a * (v @ DENSE.jacobian(a * y, t) @ v)
            y = y + growth * DENSE.eps(a * y, t)
        return (total + norm(0, b_to / a_to).logpdf(y).sum()) / len(x)

    found, nfe = scores("nll", steps=4)
    np.testing.assert_allclose(found, [log_density(x) for x in states(IMAGES)], rtol=1e-5)
    assert nfe == 8


def test_nll_of_gaussian_images_is_their_density(monkeypatch):
    deviation = 0.5
    model = dense_diffguard(path_scores={"nll": {"steps": 999}})

    # The noise in x_t that is best in the mean square, of images N(0, deviation^2).
    def eps(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        level = model.backbone.alpha_bar[t].view(-1, 1, 1, 1)
        return (1 - level).sqrt() / (level * deviation**2 + 1 - level) * x

    monkeypatch.setattr(model.backbone, "eps", eps)
    found = model(IMAGES).scores["nll"].numpy()
    expected = norm(0, deviation).logpdf(states(IMAGES)).mean(axis=1)
    # Euler steps are off by nearly the same for all images.
    assert np.abs(found - expected).max() < 0.03
    assert np.ptp(found - expected) < 0.002


class BlocksOfAUNet(nn.Module):
    """Two blocks with the outputs that those of diffusers have."""

    class Down(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, tuple]:
            return 2 * x, ()

    class Up(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**2

    def __init__(self):
        super().__init__()
        self.down_blocks = nn.ModuleList([self.Down()])
        self.up_blocks = nn.ModuleList([self.Up()])


def with_blocks(monkeypatch) -> DiffGuard:
    """Return a model whose network is the two blocks, with the score of their outputs."""
    model = dense_diffguard(path_scores=["cfs"], slots=4)
    model.backbone.unet = BlocksOfAUNet()

    def eps(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        model.backbone.unet.down_blocks[0](x)
        return model.backbone.unet.up_blocks[0](x)

    monkeypatch.setattr(model.backbone, "eps", eps)
    return model


def test_cfs(monkeypatch):
    model = with_blocks(monkeypatch)
    model.fit_path_scores(FIT_IMAGES.split(7))
    log_snr = [2 * np.log(levels(t)[0] / levels(t)[1]) for t in range(1000)]
    t = int(np.abs(np.array(log_snr) - 5).argmin())

    def statistics(x: np.ndarray) -> np.ndarray:
        channels = noised(x, t, 0).reshape(3, -1)
        maps = (2 * channels, channels**2)
        return np.concatenate(
            [part for map in maps for part in (map.mean(axis=1), map.std(axis=1, ddof=1))]
        )

    z = z_scores(
        [statistics(x) for x in states(FIT_IMAGES)], [statistics(x) for x in states(IMAGES)]
    )
    # scikit-learn adds 1e-6 to the variances.
    expected = norm(0, (1 + 1e-6) ** 0.5).logpdf(z).sum(axis=1)
    detection = model(IMAGES)
    np.testing.assert_allclose(detection.scores["cfs"], expected, rtol=1e-4)
    assert detection.nfe.tolist() == [1] * TESTED


def test_copies_that_fill_up_the_batch_of_a_compiled_network_are_not_seen(monkeypatch):
    model = with_blocks(monkeypatch)
    expected = model.path_features([FIT_IMAGES[:6]])["cfs"]
    model.compiled = True
    assert torch.equal(model.path_features([FIT_IMAGES[:6]])["cfs"], expected)


def test_cfs_needs_a_unet():
    with pytest.raises(InputError, match="cfs: DenseBackbone has no UNet"):
        dense_diffguard(path_scores=["cfs"]).fit_path_scores([FIT_IMAGES])
    assert CFS().log_snr == 5


@pytest.mark.parametrize("name", ["scoped", "nll"])
def test_derivatives_are_the_same_in_inference_mode_which_runs_are_in(name):
    model = model_with(name)
    expected = model(IMAGES).scores[name]
    with torch.inference_mode():
        found = model(IMAGES).scores[name]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "name",
    ["ddpm_ood", "diffnb", "projection_regret", "lmd", "gepc", "scoped", "eigenscore", "nll"],
)
def test_a_score_does_not_depend_on_the_batch(name):
    model = model_with(name)
    together = model(IMAGES).scores[name]
    alone = torch.cat([model(image[None]).scores[name] for image in IMAGES])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)
    assert model.classifier.num_classes == CLASSES
