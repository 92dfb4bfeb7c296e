"""Guidance acts in its interval of timesteps."""

import pytest
import torch

from diffguard_pl import InputError
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance

TIMESTEPS = torch.arange(1, 1000, 100)


def test_the_scale_is_zero_outside_the_interval():
    guidance = ClassifierFreeGuidance(7.0, interval=(0.1, 0.35))
    scales = guidance.denoising_scales(TIMESTEPS, 1000)
    assert scales.tolist() == [0, 7, 7, 7, 0, 0, 0, 0, 0, 0]  # 101, 201, 301


def test_without_an_interval_every_step_is_guided():
    assert (ClassifierGuidance(3.0).denoising_scales(TIMESTEPS, 1000) == 3).all()


@pytest.mark.parametrize("guidance", [ClassifierGuidance, ClassifierFreeGuidance])
@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_that_is_not_two_ascending_fractions_is_rejected(guidance, interval):
    with pytest.raises(InputError, match=r"guidance.interval=.*: must be two fractions"):
        guidance(interval=interval)


def test_an_interval_without_timesteps_is_rejected_unless_there_is_no_guidance():
    with pytest.raises(InputError, match=r"guidance.interval=\[0.45, 0.46\]: contains none"):
        ClassifierGuidance(interval=(0.45, 0.46)).check_interval(TIMESTEPS, 1000)
    ClassifierGuidance(0.0, interval=(0.45, 0.46)).check_interval(TIMESTEPS, 1000)
