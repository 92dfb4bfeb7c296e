"""PixelDiffusion: guided-diffusion's models, from files, names and folders."""

from dataclasses import replace

import torch
from helpers.golden import GDM_ARCHITECTURE
from helpers.originals import GDM_FILE
from safetensors.torch import save_file

from diffguard_pl.backbones import (
    PixelDiffusion,
)


def test_a_converted_pixel_model_loads_from_its_diffusers_folder(tmp_path):
    original = PixelDiffusion(str(GDM_FILE), GDM_ARCHITECTURE)
    original.unet.save_pretrained(tmp_path / "unet")
    again = PixelDiffusion(str(tmp_path / "unet"))
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([10, 900]), torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(original.eps(x, t, y), again.eps(x, t, y))


def test_safetensors_in_the_original_layout(tmp_path):
    save_file(torch.load(GDM_FILE, weights_only=True), tmp_path / "model.safetensors")
    assert PixelDiffusion(str(tmp_path / "model.safetensors"), GDM_ARCHITECTURE).image_size == 32


def test_improved_diffusion_gets_timesteps_out_of_1000():
    a = replace(GDM_ARCHITECTURE, diffusion_steps=4000)
    plain_one, rescaled = (
        PixelDiffusion(str(GDM_FILE), a),
        PixelDiffusion(str(GDM_FILE), replace(a, rescale_timesteps=True)),
    )
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([2, 3999])
    assert torch.equal(rescaled.eps(x, t, t), plain_one.eps(x, t / 4, t))
    assert not torch.equal(rescaled.eps(x, t, t), plain_one.eps(x, t, t))
