"""LatentDiffusion: CompVis' models, from files and folders."""

import torch
from helpers.golden import LDM_ARCHITECTURE
from helpers.originals import LDM_FILE
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from diffguard_pl.backbones import (
    LatentDiffusion,
)


def test_a_converted_latent_model_loads_from_its_diffusers_folder(tmp_path):
    original = LatentDiffusion(str(LDM_FILE), LDM_ARCHITECTURE)
    original.unet.save_pretrained(tmp_path / "unet")
    original.first_stage.save_pretrained(tmp_path / "vqvae")
    (tmp_path / "class_embedding").mkdir()
    save_file(original.embedding.state_dict(), tmp_path / "class_embedding" / "model.safetensors")
    again = LatentDiffusion(str(tmp_path))
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    x = original.encode(images)
    torch.testing.assert_close(x, again.encode(images))
    torch.testing.assert_close(original.decode(x), again.decode(x))
    t, y = torch.tensor([500]), torch.tensor([7])
    torch.testing.assert_close(original.eps(x, t, y), again.eps(x, t, y))


def test_without_antialias_images_become_smaller_as_in_the_paper_s_environment():
    settings = {"input_size": 12, "process_method": "resize", "antialias": False}
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    smaller = LatentDiffusion("digits_ldm", **settings).to_input_size(images)
    assert torch.equal(smaller, interpolate(images, (12, 12), mode="bilinear", antialias=False))
