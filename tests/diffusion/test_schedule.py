"""The schedules are those of the originals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffguard_pl import InputError
from diffguard_pl.backbones.pixel import NOISE_SCHEDULES
from diffguard_pl.diffusion.schedule import (
    LATENT_SCHEDULES,
    alpha_bar_at,
    cosine_alpha_bar,
    karras,
    karras_sigmas,
    latent_alpha_bar,
    linear_alpha_bar,
    quadratic,
    respaced,
    respaced_by,
    scaled_linear_alpha_bar,
    timesteps_at,
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
    schedule = uniform(scaled_linear_alpha_bar(), steps)
    assert len(schedule) >= steps - 1
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
        (quadratic, 0),
        (quadratic, 1001),
    ],
)
def test_impossible_numbers_of_steps_are_rejected_by_number(make, steps):
    with pytest.raises(InputError, match=f"steps={steps}"):
        make(linear_alpha_bar(), steps)


def test_a_number_of_steps_without_a_stride_names_others_near_it():
    with pytest.raises(InputError, match=r"steps=99:.* 91, 100"):
        respaced(linear_alpha_bar(), 99)


# ---- the definitions, from the formulas of the papers and of the original implementations


def betas_by_definition(name: str, steps: int) -> list[float]:
    """Return guided-diffusion's betas; the last two names are DiffGuard's."""
    start, end = 1e-4 * 1000 / steps, 0.02 * 1000 / steps
    if name == "cosine":
        level = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return [min(1 - level[i + 1] / level[i], 0.999) for i in range(steps)]
    betas = []
    for i in range(steps):
        to_end = i / (steps - 1)
        if name == "linear":
            betas.append(start + (end - start) * to_end)
        elif name == "ldm_linear":
            betas.append((start**0.5 + (end**0.5 - start**0.5) * to_end) ** 2)
        else:
            betas.append(start + (end - start) * (1 - math.cos(i / steps * math.pi)) / 2)
    return betas


def latent_betas_by_definition(name: str, start: float, end: float, s: float, steps: int):
    """Return latent-diffusion's betas."""
    if name == "cosine":
        level = np.cos((np.arange(steps + 1) / steps + s) / (1 + s) * np.pi / 2) ** 2
        return np.clip(1 - level[1:] / level[:-1], 0, 0.999)
    if name == "linear":
        return np.linspace(start**0.5, end**0.5, steps) ** 2
    betas = np.linspace(start, end, steps)
    return betas if name == "sqrt_linear" else betas**0.5


@pytest.mark.parametrize("name", ["linear", "cosine", "ldm_linear", "cos_linear"])
@pytest.mark.parametrize("steps", [50, 1000, 4000])
def test_noise_schedules_of_guided_diffusion(name, steps):
    expected = np.cumprod(1 - np.array(betas_by_definition(name, steps)))
    np.testing.assert_allclose(NOISE_SCHEDULES[name](steps), expected, rtol=1e-9)
    assert NOISE_SCHEDULES.keys() == {"linear", "cosine", "ldm_linear", "cos_linear"}


@pytest.mark.parametrize("name", LATENT_SCHEDULES)
@pytest.mark.parametrize(
    ("start", "end", "s", "steps"), [(0.0015, 0.0195, 0.008, 1000), (1e-4, 2e-2, 0.02, 250)]
)
def test_noise_schedules_of_latent_diffusion(name, start, end, s, steps):
    found = latent_alpha_bar(name, start, end, s, steps)
    expected = np.cumprod(1 - latent_betas_by_definition(name, start, end, s, steps))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_betas_that_are_none_and_an_unknown_schedule_are_rejected():
    for start, end in [(0.0, 0.02), (0.02, 0.01), (0.5, 1.0), (float("nan"), 0.5)]:
        with pytest.raises(InputError, match=r"linear_start=.*correct"):
            latent_alpha_bar("linear", start, end, 0.008, 1000)
    with pytest.raises(InputError, match=r"beta_schedule 'sigmoid'.*linear, cosine"):
        latent_alpha_bar("sigmoid", 0.001, 0.02, 0.008, 1000)


@given(st.integers(1, 1000))
def test_every_number_of_steps_gives_the_timesteps_of_latent_diffusion(steps):
    timesteps = [t + 1 for t in range(0, 1000, 1000 // steps)]
    if timesteps[-1] == 1000:
        timesteps.pop()
    assert uniform(scaled_linear_alpha_bar(), steps).timesteps.tolist() == timesteps


@pytest.mark.parametrize(
    ("steps", "kept"), [(3, 3), (300, 333), (333, 333), (600, 999), (999, 999), (1000, 999)]
)
def test_a_last_step_of_1000_is_dropped(steps, kept):
    schedule = uniform(scaled_linear_alpha_bar(), steps)
    assert len(schedule) == kept
    assert schedule.timesteps[-1] == 999 - (1000 // steps - 1)
    assert (schedule.inversion_to > 0).all()


def test_quadratic_timesteps_of_latent_diffusion():
    alpha_bar = scaled_linear_alpha_bar()
    for steps in range(1, 1001):
        expected = (np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2).astype(int) + 1
        assert quadratic(alpha_bar, steps).timesteps.tolist() == expected.tolist()


def sections_by_definition(total: int, counts: list[int]) -> set[int]:
    """Return the timesteps that guided-diffusion keeps: evenly spaced in equal sections."""
    kept, start = set(), 0
    for i, count in enumerate(counts):
        size = total // len(counts) + (i < total % len(counts))
        for k in range(count):
            kept.add(start + round(k * (size - 1) / max(1, count - 1)))
        start += size
    return kept


@pytest.mark.parametrize(
    ("total", "respacing", "count"),
    [
        (1000, "250", 250),
        (1000, 250, 250),
        (300, "10,15,20", 45),
        (1000, "10,15,20", 45),
        (1000, " 10, 15 ,20 ", 45),
        (1000, "1000", 1000),
        (1000, "1", 1),
        (1000, "20,0,1", 21),
        (1000, "", 1000),
        (4000, "100,50,25,25", 200),
    ],
)
def test_sections_of_timestep_respacing(total, respacing, count):
    alpha_bar = linear_alpha_bar(total)
    schedule = respaced_by(alpha_bar, respacing)
    counts = [int(part) for part in str(respacing).split(",")] if respacing else [total]
    # a rounding error of the definition's product may move a timestep that lies between two
    difference = set(schedule.timesteps.tolist()) ^ sections_by_definition(total, counts)
    assert len(difference) <= 2
    assert len(schedule) == count

    # the levels of guided-diffusion's respaced betas
    kept = alpha_bar[schedule.timesteps]
    assert torch.equal(schedule.denoising_from, kept)
    assert torch.equal(schedule.denoising_to, torch.cat([kept.new_ones(1), kept[:-1]]))
    assert torch.equal(schedule.inversion_to, torch.cat([kept[1:], kept.new_zeros(1)]))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=10).filter(any))
def test_each_section_keeps_its_own_number_of_steps(counts):
    timesteps = respaced_by(linear_alpha_bar(), ",".join(map(str, counts))).timesteps
    assert len(timesteps) == sum(counts)
    assert (timesteps.diff() > 0).all()
    size = 1000 / len(counts)
    for i, count in enumerate(counts):
        inside = (timesteps >= math.ceil(i * size)) & (timesteps < math.ceil((i + 1) * size))
        if 1000 % len(counts) == 0:
            assert inside.sum() == count


def test_timestep_respacing_by_stride_is_the_number_of_steps():
    for steps in (5, 25, 50, 100, 250):
        found = respaced_by(linear_alpha_bar(), f"ddim{steps}")
        assert torch.equal(found.timesteps, respaced(linear_alpha_bar(), steps).timesteps)


@pytest.mark.parametrize(
    "respacing",
    [
        "ddim",
        "ddim99",
        "ddim10,10",
        "ten",
        "10,,15",
        "-5",
        "10.5",
        "0",
        "1001",
        "500,501",
        "9" * 5000,
    ],
)
def test_a_timestep_respacing_that_cannot_be_is_rejected_by_name(respacing):
    with pytest.raises(InputError, match=r"timestep_respacing") as error:
        respaced_by(linear_alpha_bar(), respacing)
    assert len(str(error.value)) < 250


def test_sigmas_of_karras():
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(karras_sigmas(18), expected[::-1], rtol=1e-12)
    assert karras_sigmas(1).tolist() == pytest.approx([80])


@pytest.mark.parametrize("alpha_bar", ALPHA_BARS)
def test_timesteps_between_those_of_the_training(alpha_bar):
    # ln(sigma) is linear between two timesteps
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    between = (sigma[100] * sigma[101]).sqrt()
    middle = torch.tensor([100.5], dtype=torch.float64)
    assert timesteps_at(alpha_bar, between[None]).item() == pytest.approx(100.5)
    assert alpha_bar_at(alpha_bar, middle).item() == pytest.approx(1 / (1 + between.item() ** 2))

    # one is the inverse of the other, and integers are the table's own
    timesteps = torch.tensor([0, 0.3, 17.9, 500, 998.5, 999], dtype=torch.float64)
    level = alpha_bar_at(alpha_bar, timesteps)
    found = timesteps_at(alpha_bar, ((1 - level) / level).sqrt())
    torch.testing.assert_close(found, timesteps, atol=1e-7, rtol=0)
    whole = torch.tensor([0, 3, 999])
    assert torch.equal(alpha_bar_at(alpha_bar, whole), alpha_bar[whole])
    torch.testing.assert_close(alpha_bar_at(alpha_bar, whole.double()), alpha_bar[whole])


def test_sigmas_out_of_range_are_the_ends():
    alpha_bar = linear_alpha_bar()
    assert timesteps_at(alpha_bar, torch.tensor([1e-9, 0, 1e9])).tolist() == [0, 0, 999]


def test_karras_visits_the_sigmas_of_the_paper_both_ways():
    alpha_bar = 1 / (1 + karras_sigmas(1000) ** 2)
    schedule = karras(alpha_bar, 18)
    level = schedule.denoising_from
    torch.testing.assert_close(((1 - level) / level).sqrt(), karras_sigmas(18), rtol=1e-9, atol=0)
    assert torch.equal(schedule.inversion_to, level)
    assert schedule.denoising_to[0] == 1
    assert torch.equal(schedule.denoising_to[1:], level[:-1])
    assert torch.equal(schedule.inversion_from, schedule.denoising_to)

    # a schedule of betas, at timesteps between its own
    schedule = karras(scaled_linear_alpha_bar(), 10)
    assert schedule.timesteps[0] == 0
    assert schedule.timesteps[-1] == 999
    sigma = ((1 - schedule.denoising_from) / schedule.denoising_from) ** 0.5
    roots = sigma ** (1 / 7)
    torch.testing.assert_close(roots.diff(), (roots[1] - roots[0]).expand(9))
