"""Settings of the DDIM steps: where denoising starts, and which of them are possible."""

import pytest
import torch

from diffguard_pl import InputError
from diffguard_pl.diffusion.sampling import SamplingSettings
from diffguard_pl.diffusion.schedule import linear_alpha_bar, respaced

SCHEDULE = respaced(linear_alpha_bar(), 100)


def test_denoising_starts_above_the_stop_index_or_at_a_fixed_step():
    stop_index = torch.tensor([0, 40, 89, 99])
    above = SamplingSettings(SCHEDULE, forback_skip_diff=3)
    fixed = SamplingSettings(SCHEDULE, skip_first_steps=40)
    assert above.first_denoising_index(stop_index).tolist() == [2, 42, 91, 99]
    assert fixed.first_denoising_index(stop_index).tolist() == [59] * 4


def test_early_stop_steps_are_the_last_ones_of_inversion():
    assert SamplingSettings(SCHEDULE, early_stop_steps=10).inversion_steps == 90


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"compare_to": "inputs"}, "compare_to.*input, unguided"),
        ({"early_stop": {"ssim": 0.5}}, "early_stop.*psnr, dists, lpips"),
        ({"early_stop_steps": 100}, "early_stop_steps=100: must be 0 to 99"),
        ({"skip_first_steps": -1}, "skip_first_steps=-1"),
        ({"skip_last_steps": 100}, "skip_last_steps=100"),
        ({"forback_skip_diff": -1}, "forback_skip_diff=-1"),
    ],
)
def test_settings_out_of_range_are_rejected_by_name(settings, expected):
    with pytest.raises(InputError, match=expected):
        SamplingSettings(SCHEDULE, **settings)


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        # 100 steps, less the first 70: denoising starts at 29
        ({"skip_first_steps": 70}, 29),
        # inversion stops at 89, and denoising starts one step above
        ({"early_stop_steps": 10, "forback_skip_diff": 2}, 90),
        # an image may stop after its first step, at index 0
        ({"early_stop": {"psnr": 50.0}, "forback_skip_diff": 2}, 1),
    ],
)
def test_at_least_one_denoising_step_remains_wherever_inversion_stops(settings, most):
    SamplingSettings(SCHEDULE, skip_last_steps=most, **settings)
    with pytest.raises(InputError, match=f"skip_last_steps={most + 1}: must be at most {most}"):
        SamplingSettings(SCHEDULE, skip_last_steps=most + 1, **settings)
