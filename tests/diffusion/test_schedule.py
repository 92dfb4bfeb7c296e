"""The schedules are those of the originals."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diffguard_pl import InputError
from diffguard_pl.diffusion.schedule import (
    cosine_alpha_bar,
    linear_alpha_bar,
    respaced,
    scaled_linear_alpha_bar,
    uniform,
    zero_terminal_snr,
)

ALPHA_BARS = [linear_alpha_bar(), scaled_linear_alpha_bar(), cosine_alpha_bar()]


def test_ddim100_visits_every_tenth_timestep():
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


@pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
def test_the_signal_falls_from_almost_one_to_almost_nothing(alpha_bar):
    assert len(alpha_bar) == 1000
    assert alpha_bar[0] > 0.998
    assert alpha_bar[-1] < 0.01
    assert (alpha_bar.diff() < 0).all()


@pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
def test_zero_terminal_snr_changes_the_end_and_keeps_the_beginning(alpha_bar):
    rescaled = zero_terminal_snr(alpha_bar)
    assert rescaled[-1] == 0
    assert rescaled[0] == pytest.approx(alpha_bar[0].item())
    assert (rescaled.diff() < 0).all()


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
def test_impossible_numbers_of_steps_are_rejected_by_number(make, steps):
    with pytest.raises(InputError, match=f"steps={steps}"):
        make(linear_alpha_bar(), steps)


def test_a_number_of_steps_without_a_stride_names_others_near_it():
    with pytest.raises(InputError, match=r"steps=99:.* 91, 100"):
        respaced(linear_alpha_bar(), 99)
