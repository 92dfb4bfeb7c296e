"""PixelDiffusion: guided-diffusion's models, from files, names and folders."""

from dataclasses import replace

import torch
from helpers.golden import GDM_ARCHITECTURE
from helpers.originals import GDM_FILE
from safetensors.torch import save_file
from torch.nn.functional import interpolate

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


def test_without_antialias_sizes_change_as_in_the_paper_s_environment():
    sizes = {"input_size": 28, "process_method": "resize"}
    paper = PixelDiffusion(str(GDM_FILE), GDM_ARCHITECTURE, **sizes, antialias=False)
    default = PixelDiffusion(str(GDM_FILE), GDM_ARCHITECTURE, **sizes)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    smaller = paper.decode(images)
    assert torch.equal(smaller, bilinear(images, 28, antialias=False))
    assert torch.equal(default.decode(images), bilinear(images, 28, antialias=True))
    assert (smaller - default.decode(images)).abs().max() > 0.1

    # Nothing is lost where images become larger.
    assert torch.equal(paper.encode(smaller), bilinear(smaller, 32, antialias=False))
    torch.testing.assert_close(paper.encode(smaller), default.encode(smaller))


def bilinear(images: torch.Tensor, size: int, antialias: bool) -> torch.Tensor:
    return interpolate(
        images, (size, size), mode="bilinear", align_corners=False, antialias=antialias
    )


def test_improved_diffusion_gets_timesteps_out_of_1000():
    a = replace(GDM_ARCHITECTURE, diffusion_steps=4000)
    plain_one, rescaled = (
        PixelDiffusion(str(GDM_FILE), a),
        PixelDiffusion(str(GDM_FILE), replace(a, rescale_timesteps=True)),
    )
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([2, 3999])
    assert torch.equal(rescaled.eps(x, t, t), plain_one.eps(x, t / 4, t))
    assert not torch.equal(rescaled.eps(x, t, t), plain_one.eps(x, t, t))
