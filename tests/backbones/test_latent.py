"""LatentDiffusion: CompVis' models, from files and folders."""

import torch
from helpers.golden import LDM_ARCHITECTURE
from helpers.originals import LDM_FILE
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from diffguard_pl.backbones import (
    LatentDiffusion,
    latent,
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


def test_the_nearest_code_of_each_vector_whatever_fits_at_once(monkeypatch):
    # CUDA refuses the distances of 128 images of 64x64 vectors to 8,192 codes ("invalid argument").
    codes = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0]])
    vectors = torch.tensor([[0.1, 0.2], [3.0, 0.0], [0.0, 1.5], [1.9, 0.0], [2.1, 0.0], [9.0, 9.0]])
    shapes = []
    cdist = torch.cdist

    def recorded(a, b, **settings):
        shapes.append((len(a), len(b)))
        return cdist(a, b, **settings)

    monkeypatch.setattr(torch, "cdist", recorded)
    for at_once, calls in ((2**26, 1), (12, 2), (3, 6), (1, 6)):
        shapes.clear()
        monkeypatch.setattr(latent, "DISTANCES_AT_ONCE", at_once)
        assert latent.nearest_codes(vectors, codes).tolist() == [0, 1, 2, 0, 1, 1]
        assert len(shapes) == calls
        assert all(n * k <= max(at_once, k) for n, k in shapes)


def test_no_latents_have_no_codes():
    assert latent.nearest_codes(torch.empty(0, 3), torch.rand(5, 3)).shape == (0,)
