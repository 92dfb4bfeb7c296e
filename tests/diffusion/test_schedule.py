"""The schedules are those of the originals, and DDIM steps undo each other."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from diffguard_pl import InputError
from diffguard_pl.diffusion.classifier_guidance import crop_sequence
from diffguard_pl.diffusion.ddim import (
    Level,
    clip_eps,
    eps_from_x0,
    predict_x0,
    step,
)
from diffguard_pl.diffusion.early_stop import PSNR, EarlyStop
from diffguard_pl.diffusion.sampling import SamplingSettings
from diffguard_pl.diffusion.schedule import (
    cosine_alpha_bar,
    linear_alpha_bar,
    respaced,
    scaled_linear_alpha_bar,
    uniform,
)

levels = st.floats(1e-4, 0.9999)


def test_ddim100_visits_every_tenth_step():
    assert respaced(linear_alpha_bar(), 100).timesteps.tolist() == list(range(0, 1000, 10))


def test_latent_diffusion_with_25_steps_visits_1_41_to_961():
    assert uniform(scaled_linear_alpha_bar(), 25).timesteps.tolist() == list(range(1, 1000, 40))


@given(st.integers(1, 40).map(lambda stride: len(range(0, 1000, stride))))
def test_respacing_keeps_exactly_n_steps_and_ends_in_pure_noise(steps):
    schedule = respaced(linear_alpha_bar(), steps)
    assert len(schedule) == steps
    assert schedule.inversion_to[-1] == 0
    assert schedule.denoising_to[0] == 1
    assert (schedule.inversion_to[:-1] == schedule.inversion_from[1:]).all()


@given(st.integers(1, 500))
def test_uniform_denoising_goes_back_the_way_of_inversion(steps):
    assume(999 % (1000 // steps))  # else the last step lies beyond the training schedule
    schedule = uniform(scaled_linear_alpha_bar(), steps)
    assert len(schedule) >= steps
    assert (schedule.inversion_from == schedule.denoising_to).all()
    assert (schedule.inversion_to == schedule.denoising_from).all()


@pytest.mark.parametrize(
    "alpha_bar", [linear_alpha_bar(), scaled_linear_alpha_bar(), cosine_alpha_bar()]
)
def test_signal_falls_from_almost_one_to_almost_nothing(alpha_bar):
    assert len(alpha_bar) == 1000
    assert alpha_bar[0] > 0.998
    assert alpha_bar[-1] < 0.01
    assert (alpha_bar.diff() < 0).all()


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (respaced, 99),
        (respaced, 0),
        (respaced, 2000),
        (uniform, 0),
        (uniform, 1001),
        (uniform, 1000),
        (uniform, 300),
    ],
)
def test_impossible_step_counts_are_refused_by_number(make, steps):
    with pytest.raises(InputError, match=f"steps={steps}"):
        make(linear_alpha_bar(), steps)


@given(levels, levels)
def test_a_step_and_its_reverse_give_x_back(a, b):
    x, eps = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    here, there = (Level.of(torch.tensor([level], dtype=torch.float64), x) for level in (a, b))
    torch.testing.assert_close(step(step(x, eps, here, there), eps, there, here), x)
    torch.testing.assert_close(
        eps_from_x0(x, predict_x0(x, eps, here), here), eps, atol=1e-6, rtol=1e-6
    )


@given(levels)
def test_clipping_bounds_the_predicted_picture(a):
    x, eps = 3 * torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    level = Level.of(torch.tensor([a], dtype=torch.float64), x)
    assert predict_x0(x, clip_eps(x, eps, level), level).abs().max() <= 1 + 1e-9


def test_rows_of_one_batch_take_steps_of_their_own():
    x, eps = torch.randn(2, 3, 1, 2, 2)
    alpha_bar = linear_alpha_bar()
    together = step(
        x, eps, Level.of(alpha_bar[[10, 500, 900]], x), Level.of(alpha_bar[[0, 490, 890]], x)
    )
    for i, (t, to) in enumerate(((10, 0), (500, 490), (900, 890))):
        alone = step(
            x[i : i + 1], eps[i : i + 1], Level.of(alpha_bar[[t]], x), Level.of(alpha_bar[[to]], x)
        )
        assert torch.equal(together[i : i + 1], alone)


def test_where_denoising_starts():
    stopped = torch.tensor([0, 40, 89, 99])
    schedule = respaced(linear_alpha_bar(), 100)
    above_the_stop = SamplingSettings(schedule, forback_skip_diff=3)
    fixed = SamplingSettings(schedule, skip_first_steps=40)
    assert above_the_stop.first_denoising_index(stopped).tolist() == [2, 42, 91, 99]
    assert fixed.first_denoising_index(stopped).tolist() == [59] * 4


def test_early_stop_when_any_metric_is_below_its_threshold():
    images = torch.zeros(3, 3, 8, 8)
    x = images + torch.tensor([0.1, 1.0, 0.1]).view(3, 1, 1, 1)

    class Other:
        def reference(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [torch.tensor([0.5, 0.5, 0.1]), images]

        def __call__(self, x: torch.Tensor, reference: list[torch.Tensor]) -> torch.Tensor:
            assert torch.equal(reference[1], images)
            return reference[0]

    stop = EarlyStop({"psnr": 50.0, "other": 0.2}, {"psnr": PSNR(), "other": Other()})
    assert PSNR()(x, PSNR().reference(images)).tolist() == pytest.approx(
        [68.13, 48.13, 68.13], abs=0.01
    )
    assert stop.should_stop(x, stop.reference(images)).tolist() == [False, True, True]


def test_the_crop_sequence_is_the_same_each_time_and_stays_inside():
    first, second = (crop_sequence(256, 8, 224, seed=100) for _ in range(2))
    for _ in range(20):
        crops = next(first)
        assert crops == next(second)
        assert all(
            224 <= c.side <= 256 and c.x + c.side <= 256 and c.y + c.side <= 256 for c in crops
        )
