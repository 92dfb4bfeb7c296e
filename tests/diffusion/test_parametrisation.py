"""Every parametrisation gives the noise that is in x, and training targets are its inverse."""

import numpy as np
import pytest
import torch

from diffguard_pl.diffusion.ddim import Level, predict_x0, step
from diffguard_pl.diffusion.parametrisation import (
    EDM,
    Parametrisation,
    RectifiedFlow,
    VariancePreserving,
)
from diffguard_pl.diffusion.schedule import alpha_bar_of_flow, alpha_bar_of_sigma
from diffguard_pl.errors import InputError

ALL = [
    VariancePreserving("epsilon"),
    VariancePreserving("sample"),
    VariancePreserving("v_prediction"),
    RectifiedFlow(),
    RectifiedFlow(time_scale=1, towards_data=True),
    EDM(),
    EDM(sigma_data=1.0, sigma_min=0.002, time_scale=250),
    EDM(sign=-1),
]
SIGMAS = torch.tensor([0.003, 0.1, 1.0, 7.0, 79.0], dtype=torch.float64)


@pytest.mark.parametrize("parametrisation", ALL)
def test_a_perfect_network_gives_the_noise(parametrisation: Parametrisation):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64)
    level = Level.of(alpha_bar_of_sigma(SIGMAS), x0)
    x = level.signal * x0 + level.noise * noise

    eps = parametrisation.eps(parametrisation.target(x0, noise, level), x, level)
    torch.testing.assert_close(eps, noise, rtol=1e-9, atol=1e-9)

    # In float32 the noise has an error of its own rounding, times the scale that x0 has in it.
    single = Level.of(alpha_bar_of_sigma(SIGMAS), x0.float())
    target = parametrisation.target(x0, noise, level).float()
    eps = parametrisation.eps(target, x.float(), single)
    limit = 1e-6 * (1 + 1 / single.noise)
    assert ((eps - noise).abs() < limit).all()


def test_edm_is_that_of_karras_et_al():
    # Table 1, written anew at EDM's own scale.
    d, sigma = 0.5, SIGMAS.numpy()[:, None, None, None]
    rng = np.random.default_rng(0)
    x_sigma, output = rng.normal(size=(2, 5, 3, 4, 4))
    x_sigma *= sigma
    denoised = d**2 / (sigma**2 + d**2) * x_sigma + sigma * d / np.sqrt(d**2 + sigma**2) * output

    x = torch.from_numpy(x_sigma / np.sqrt(1 + sigma**2))
    level = Level.of(alpha_bar_of_sigma(SIGMAS), x)
    inputs, time = EDM().inputs(x, torch.zeros(5), level)
    np.testing.assert_allclose(inputs, x_sigma / np.sqrt(sigma**2 + d**2), rtol=1e-9)
    np.testing.assert_allclose(time, np.log(SIGMAS.numpy()) / 4, rtol=1e-9)
    eps = EDM().eps(torch.from_numpy(output), x, level)
    np.testing.assert_allclose(eps, (x_sigma - denoised) / sigma, rtol=1e-7, atol=1e-9)


def test_a_consistency_model_returns_its_input_at_the_smallest_sigma():
    model = EDM(sigma_min=0.002)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    level = Level.of(alpha_bar_of_sigma(torch.tensor([0.002], dtype=torch.float64)), x)
    eps = model.eps(torch.randn_like(x), x, level)
    torch.testing.assert_close(predict_x0(x, eps, level), x / level.signal)


@pytest.mark.parametrize("towards_data", [False, True])
def test_a_ddim_step_is_an_euler_step_of_the_flow(towards_data: bool):
    # x_s' = x_s + (s' - s) (eps - x0), at the flow's own scale
    s, s_to = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    own, output = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    flow = -output if towards_data else output
    expected = own + (s_to - s) * flow

    level, to = (Level.of(alpha_bar_of_flow(part), own) for part in (s, s_to))
    x = own * (level.signal + level.noise)
    model = RectifiedFlow(towards_data=towards_data)
    inputs, time = model.inputs(x, torch.zeros(1), level)
    torch.testing.assert_close(inputs, own)
    assert time.item() == pytest.approx(700 if towards_data else 300)
    moved = step(x, model.eps(output, x, level), level, to)
    torch.testing.assert_close(moved / (to.signal + to.noise), expected)


def test_a_ddim_step_is_an_euler_step_of_edm():
    # dx/dsigma = (x - D) / sigma = eps (Karras et al., equation 3)
    sigma, sigma_to = torch.tensor([[3.0], [2.0]], dtype=torch.float64)
    own, eps = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    level, to = (Level.of(alpha_bar_of_sigma(part), own) for part in (sigma, sigma_to))
    moved = step(own * level.signal, eps, level, to)
    torch.testing.assert_close(moved / to.signal, own + (sigma_to - sigma) * eps)


def test_an_unknown_prediction_is_named():
    with pytest.raises(InputError, match="prediction_type"):
        VariancePreserving("noise")
