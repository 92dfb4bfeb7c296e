"""Clean-gradient guidance is its definition, whatever shares the batch (paper, section 3.2.1)."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffguard_pl import InputError
from diffguard_pl.diffusion.classifier_guidance import (
    ClassifierGuidance,
    Crop,
    crop_and_resize,
    crop_sequence,
)
from diffguard_pl.diffusion.ddim import Level
from diffguard_pl.diffusion.guidance import GuidanceInputs, GuidingClassifier


def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return (x + t.view(-1, 1, 1, 1) / 1000).tanh()


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4, 5)).double().requires_grad_(False)


def eps_by_definition(
    guidance: ClassifierGuidance,
    classifier: nn.Module,
    x: Tensor,
    t: Tensor,
    alpha_bar: Tensor,
    label: int,
    crops: list[Crop],
) -> Tensor:
    """eps - sqrt(1 - alpha_bar) s grad_x_in sum log p(label | crop((x_in + 1) / 2)), for one x."""
    sigma = (1 - alpha_bar).sqrt()
    eps = network(x, t, t)
    x0hat = (x - sigma * eps) / alpha_bar.sqrt()
    x_in = (sigma * x0hat + (1 - sigma) * x if guidance.x0hat else x).requires_grad_()
    views = [crop.apply((x_in + 1) / 2) for crop in crops] or [(x_in + 1) / 2]
    log_p = sum(classifier(view).log_softmax(1)[0, label] for view in views)
    (gradient,) = torch.autograd.grad(log_p, x_in)
    return eps - sigma * guidance.scale * gradient


@pytest.mark.parametrize("x0hat", [True, False])
@pytest.mark.parametrize("cutouts", [0, 3])
def test_guided_noise_is_its_definition(classifier, x0hat, cutouts):
    guidance = ClassifierGuidance(2.0, cutouts=cutouts, cutout_size=10, x0hat=x0hat)
    x, t = torch.randn(4, 3, 12, 12, dtype=torch.float64), torch.tensor([5, 300, 700])
    alpha_bar = torch.tensor([0.9, 0.5, 0.1, 0.9], dtype=torch.float64)
    labels = torch.tensor([3, 1])
    crops = guidance.crops(2, 12)
    x[3] = x[0]

    # Two guided rows at different crops, an unguided one, and an unguided copy of the first.
    inputs = GuidanceInputs(
        torch.zeros(3, dtype=torch.long),
        labels,
        torch.full((2, 1, 1, 1), 2.0, dtype=torch.float64),
        crops,
        unguided_copies=1,
    )
    eps = guidance.predict_eps(
        network, x, t, Level.of(alpha_bar, x), inputs, GuidingClassifier(classifier, 10)
    ).eps

    sequence = crop_sequence(12, cutouts, 10, guidance.seed)
    for i, squares in enumerate(islice(sequence, 2)):
        expected = eps_by_definition(
            guidance, classifier, x[i : i + 1], t[i], alpha_bar[i], int(labels[i]), squares
        )
        torch.testing.assert_close(eps[i : i + 1], expected)
    assert torch.equal(eps[2:3], network(x[2:3], t[2:3], t))
    assert torch.equal(eps[3:4], network(x[:1], t[:1], t))


def test_the_step_uses_the_clamped_x0_and_the_gradient_the_unclamped_one(classifier):
    guidance = ClassifierGuidance(1.0, cutouts=0)
    x, t = 4 * torch.ones(1, 3, 8, 8, dtype=torch.float64), torch.tensor([5])
    level = Level.of(torch.tensor([0.5], dtype=torch.float64), x)
    guiding = GuidingClassifier(classifier, 8)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    inputs = GuidanceInputs(torch.tensor([0]), torch.tensor([2]), one)
    clipping = inputs._replace(clip=one.bool())
    free = guidance.predict_eps(network, x, t, level, inputs, guiding).eps
    clipped = guidance.predict_eps(network, x, t, level, clipping, guiding).eps
    eps = network(x, t, t)
    torch.testing.assert_close(free - eps, clipped - (x - level.signal) / level.noise)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 32), st.integers(0, 32), st.integers(0, 31)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 40),
)
def test_crops_are_those_of_interpolate(squares, size):
    crops = [Crop(min(x, 31 - s), min(y, 31 - s), s + 1, size) for x, y, s in squares]
    images = torch.rand(2, 3, 32, 32)
    expected = torch.stack(
        [interpolate(images[:, :, c.y : c.y + c.side, c.x : c.x + c.side], size) for c in crops],
        dim=1,
    )
    numbers = torch.tensor([crop[:3] for crop in crops]).expand(2, -1, -1)
    found = crop_and_resize(images, numbers, size).unflatten(0, (2, len(crops)))
    assert torch.equal(found, expected)
    assert torch.equal(crops[0].apply(images), expected[:, 0])


def test_the_crop_sequence_is_the_same_each_time_and_stays_inside():
    first, second = (crop_sequence(256, 8, 224, seed=100) for _ in range(2))
    for _ in range(20):
        crops = next(first)
        assert crops == next(second)
        for crop in crops:
            assert 224 <= crop.side <= 256
            assert 0 <= crop.x <= 256 - crop.side
            assert 0 <= crop.y <= 256 - crop.side


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"cutouts": -1}, "guidance.cutouts=-1"), ({"cutout_size": 0}, "guidance.cutout_size=0")],
)
def test_impossible_cutouts_are_rejected(settings, expected):
    with pytest.raises(InputError, match=f"{expected}: must be at least"):
        ClassifierGuidance(**settings)
