"""DDIM steps undo each other, and each row of a batch takes its own steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffguard_pl.diffusion.ddim import (
    Level,
    Step,
    clip_eps,
    denoise,
    eps_from_x0,
    invert,
    predict_x0,
    step,
)
from diffguard_pl.diffusion.schedule import linear_alpha_bar, respaced

levels = st.floats(1e-4, 0.9999)


@given(levels, levels)
def test_a_step_and_its_reverse_give_x_back(a, b):
    x, eps = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    here, there = (Level.of(torch.tensor([level], dtype=torch.float64), x) for level in (a, b))
    torch.testing.assert_close(step(step(x, eps, here, there), eps, there, here), x)
    torch.testing.assert_close(
        eps_from_x0(x, predict_x0(x, eps, here), here), eps, atol=1e-6, rtol=1e-6
    )


@given(levels)
def test_clipping_bounds_the_predicted_image(a):
    x, eps = 3 * torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    level = Level.of(torch.tensor([a], dtype=torch.float64), x)
    assert predict_x0(x, clip_eps(x, eps, level), level).abs().max() <= 1 + 1e-9


def test_rows_of_a_batch_take_their_own_steps():
    x, eps = torch.randn(2, 3, 1, 2, 2)
    alpha_bar = linear_alpha_bar()
    level, to = Level.of(alpha_bar[[10, 500, 900]], x), Level.of(alpha_bar[[0, 490, 890]], x)
    together = step(x, eps, level, to)
    for i, (t, t_to) in enumerate(((10, 0), (500, 490), (900, 890))):
        level, to = Level.of(alpha_bar[[t]], x), Level.of(alpha_bar[[t_to]], x)
        assert torch.equal(together[i : i + 1], step(x[i : i + 1], eps[i : i + 1], level, to))


class Recorder:
    """A noise model whose noise is its input, and the steps that it was called for."""

    def __init__(self):
        self.steps: list[tuple[list[int], list[int]]] = []

    def __call__(self, x: Tensor, index: Tensor, level: Level, batch_index: Tensor) -> Tensor:
        self.steps.append((index.tolist(), batch_index.tolist()))
        return x.tanh()


def test_inversion_takes_ascending_steps_until_each_row_stops():
    model, schedule = Recorder(), respaced(linear_alpha_bar(), 10)
    stops_at = torch.tensor([2, 0, 9])

    def stop(x: Tensor, batch_index: Tensor) -> Tensor:
        return stops_at[batch_index] == len(model.steps) - 1

    x = torch.randn(3, 3, 4, 4)
    noise, stop_index = invert(model, x, schedule, 4, stop=stop)
    assert stop_index.tolist() == [2, 0, 3]
    assert model.steps == [
        ([0, 0, 0], [0, 1, 2]),
        ([1, 1], [0, 2]),
        ([2, 2], [0, 2]),
        ([3], [2]),
    ]
    # A row that has stopped keeps its state.
    alone, _ = invert(Recorder(), x[1:2], schedule, 1)
    assert torch.equal(noise[1:2], alone)


def test_denoising_takes_descending_steps_from_the_start_of_each_row():
    model, schedule = Recorder(), respaced(linear_alpha_bar(), 10)
    denoise(model, torch.randn(2, 3, 4, 4), schedule, torch.tensor([3, 1]), last=1)
    assert model.steps == [([3, 1], [0, 1]), ([2], [0]), ([1], [0])]


def test_callbacks_see_the_state_after_each_step():
    schedule, steps = respaced(linear_alpha_bar(), 10), list[Step]()
    x = torch.randn(2, 3, 4, 4)
    noise, _ = invert(Recorder(), x, schedule, 3, callback=steps.append)
    assert [step.index.tolist() for step in steps] == [[0, 0], [1, 1], [2, 2]]
    assert torch.equal(steps[-1].x, noise)


@pytest.mark.parametrize("steps", [5, 10])
def test_denoising_reverses_inversion_under_the_same_noise(steps):
    """With constant noise the way back is exact but for its first level, pure noise."""
    schedule = respaced(linear_alpha_bar(), steps)
    x, eps = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)

    def model(x: Tensor, index: Tensor, level: Level, batch_index: Tensor) -> Tensor:
        return eps[batch_index]

    noise, _ = invert(model, x, schedule, steps - 1)
    back = denoise(model, noise, schedule, torch.full((2,), steps - 1), last=1)
    torch.testing.assert_close(back, x)
