"""CompVis' layout: the first stage as taming-transformers computes it, and misfits."""

from dataclasses import replace

import pytest
import torch
from helpers.golden import LDM_ARCHITECTURE
from helpers.originals import LDM_FILE

from diffguard_pl import InputError
from diffguard_pl.backbones import (
    FirstStageArchitecture,
    LatentDiffusion,
)
from diffguard_pl.backbones.convert_latent_diffusion import load_first_stage


def test_first_stage_as_taming_transformers():
    pytest.importorskip(
        "taming.modules.diffusionmodules.model",
        reason="test extra taming-transformers-rom1504 is not installed",
    )
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.vqvae.quantize import VectorQuantizer2

    torch.manual_seed(0)
    settings = {
        "ch": 32,
        "out_ch": 3,
        "ch_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "attn_resolutions": [16],
        "in_channels": 3,
    }
    settings |= {"resolution": 32, "z_channels": 4, "double_z": False}
    theirs = torch.nn.ModuleDict(
        {
            "encoder": Encoder(**settings),
            "decoder": Decoder(**settings),
            "quantize": VectorQuantizer2(50, 3, beta=0.25),
            "quant_conv": torch.nn.Conv2d(4, 3, 1),
            "post_quant_conv": torch.nn.Conv2d(3, 4, 1),
        }
    ).eval()
    tensors = {f"first_stage_model.{key}": tensor for key, tensor in theirs.state_dict().items()}
    architecture = FirstStageArchitecture(
        32, 32, (1, 2, 2), 1, attn_resolutions=(16,), z_channels=4, embed_dim=3, n_embed=50
    )
    ours = load_first_stage(tensors, architecture, 1.0, LDM_FILE)
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32) * 2 - 1
        latents = theirs["quant_conv"](theirs["encoder"](images))
        torch.testing.assert_close(ours.encode(images).latents, latents, atol=1e-5, rtol=1e-5)
        recon = theirs["decoder"](theirs["post_quant_conv"](theirs["quantize"](latents)[0]))
        torch.testing.assert_close(ours.decode(latents).sample, recon, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        (replace(LDM_ARCHITECTURE, model_channels=64), "model_channels"),
        (replace(LDM_ARCHITECTURE, context_dim=64), "context_dim"),
        (replace(LDM_ARCHITECTURE, n_classes=11), r"embedding.weight is \[1001, 32\].*n_classes"),
        (
            replace(LDM_ARCHITECTURE, first_stage=replace(LDM_ARCHITECTURE.first_stage, n_embed=8)),
            "n_embed",
        ),
        (
            replace(LDM_ARCHITECTURE, first_stage=replace(LDM_ARCHITECTURE.first_stage, ch=64)),
            "first_stage.ch ",
        ),
    ],
)
def test_a_latent_checkpoint_of_another_architecture_names_the_setting(architecture, said):
    with pytest.raises(InputError, match=said):
        LatentDiffusion(str(LDM_FILE), architecture)
