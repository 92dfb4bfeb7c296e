"""CompVis' layout: the first stage as taming-transformers computes it, and misfits."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers.golden import LDM_ARCHITECTURE
from helpers.originals import LDM_FILE, saved, some_eps

from diffguard_pl import InputError
from diffguard_pl.backbones import (
    FirstStageArchitecture,
    LatentDiffusion,
)
from diffguard_pl.backbones.convert_latent_diffusion import load_first_stage
from diffguard_pl.backbones.save_converted import save_converted
from diffguard_pl.checkpoints.converted import converted_or_original
from diffguard_pl.checkpoints.state_dicts import OriginalTensor
from diffguard_pl.diffusion.schedule import cosine_alpha_bar, scaled_linear_alpha_bar


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
    tensors = {
        f"first_stage_model.{key}": OriginalTensor(key, tensor)
        for key, tensor in theirs.state_dict().items()
    }
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


UNET = "model.diffusion_model."


def compvis_state() -> dict[str, torch.Tensor]:
    """Return the state dict of the small CompVis checkpoint."""
    return torch.load(LDM_FILE, weights_only=True)["state_dict"]


def with_averages(state: dict[str, torch.Tensor], factor: float = 0.5) -> dict[str, torch.Tensor]:
    """Add averages as LitEma(DiffusionWrapper) has them: weights times a factor."""
    averages = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    for key, tensor in state.items():
        if key.startswith(UNET):
            name = key.removeprefix("model.").replace(".", "")
            averages[f"model_ema.{name}"] = tensor * factor
    # of a first stage that was trained with an average, which CompVis' sampling ignores
    first_stage = {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(5)}
    first_stage["encoderconv_inweight"] = state["first_stage_model.encoder.conv_in.weight"] * 3
    first_stage = {f"first_stage_model.model_ema.{key}": t for key, t in first_stage.items()}
    return state | averages | first_stage


def test_the_averaged_weights_are_used_unless_the_setting_says_otherwise(tmp_path, capsys):
    state = compvis_state()
    path = saved({"state_dict": with_averages(state)}, tmp_path / "model.ckpt")
    plain = LatentDiffusion(str(LDM_FILE), LDM_ARCHITECTURE)
    assert capsys.readouterr().err == ""

    averaged = LatentDiffusion(path, LDM_ARCHITECTURE)
    said = capsys.readouterr().err
    assert "state_dict.model_ema" in said
    assert "set backbone.architecture.use_ema to false" in said
    for key, tensor in plain.unet.state_dict().items():
        assert torch.equal(averaged.unet.state_dict()[key], tensor * 0.5)
    for name in ("embedding", "first_stage"):
        ours, expected = (getattr(b, name).state_dict() for b in (averaged, plain))
        assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())

    trained = LatentDiffusion(path, replace(LDM_ARCHITECTURE, use_ema=False))
    assert torch.equal(some_eps(trained), some_eps(plain))


def test_a_converted_copy_with_other_weights_is_not_used(tmp_path):
    path = Path(saved({"state_dict": with_averages(compvis_state())}, tmp_path / "model.ckpt"))
    settings = {"image_size": 16, "model_channels": 32, "channel_mult": [1, 2]}
    settings |= {"num_res_blocks": 1, "attention_resolutions": [2, 1], "context_dim": 32}
    settings["first_stage"] = asdict(LDM_ARCHITECTURE.first_stage)
    (tmp_path / "a.json").write_text(json.dumps(settings | {"use_ema": False}))
    copy = save_converted(path, architecture=tmp_path / "a.json")
    assert converted_or_original(path, replace(LDM_ARCHITECTURE, use_ema=False)) == copy
    assert converted_or_original(path, LDM_ARCHITECTURE) == path


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "ldm.model."])
def test_prefixes_are_found_and_keys_named_as_in_the_file(prefix, tmp_path):
    state = {prefix + key: tensor for key, tensor in compvis_state().items()}
    path = saved({"ema": state, "step": 3}, tmp_path / "model.ckpt")
    plain = LatentDiffusion(str(LDM_FILE), LDM_ARCHITECTURE)
    assert torch.equal(some_eps(LatentDiffusion(path, LDM_ARCHITECTURE)), some_eps(plain))
    key = f"{prefix}model.diffusion_model.input_blocks.0.0.weight"
    state[key] = state[key][:16]
    path = saved({"ema": state, "step": 3}, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=re.escape(f"its {key} is [16, 3, 3, 3]")):
        LatentDiffusion(path, LDM_ARCHITECTURE)


@pytest.mark.parametrize(
    ("constants", "architecture", "said"),
    [
        ({"scale_factor": torch.tensor(0.18215)}, {}, r"scale_factor is 0\.18215, not 1; set"),
        (
            {"alphas_cumprod": scaled_linear_alpha_bar(0.00085, 0.012).float()},
            {},
            r"alphas_cumprod .*linear_start 0\.00085, linear_end 0\.012 and timesteps 1000.*set",
        ),
        ({"alphas_cumprod": cosine_alpha_bar().float()}, {}, "alphas_cumprod .*another schedule"),
        ({}, {"linear_end": 0.02}, r"alphas_cumprod .*linear_end 0\.0195 .*not .*linear_end 0\.02"),
        ({}, {"timesteps": 500}, "alphas_cumprod .*500"),
    ],
    ids=range(5),
)
def test_constants_in_the_file_that_contradict_the_settings_are_named(
    constants, architecture, said, tmp_path
):
    state = {"state_dict": compvis_state() | constants}
    path = saved(state, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=f"model.ckpt: its {said}"):
        LatentDiffusion(path, replace(LDM_ARCHITECTURE, **architecture))


def test_constants_in_the_file_that_agree_with_the_settings_are_accepted(tmp_path):
    levels = scaled_linear_alpha_bar(0.00085, 0.012)
    for dtype in (torch.float32, torch.float16):
        constants = {"scale_factor": torch.tensor(0.18215), "alphas_cumprod": levels}
        constants = {key: tensor.to(dtype) for key, tensor in constants.items()}
        path = saved({"state_dict": compvis_state() | constants}, tmp_path / "model.ckpt")
        settings = {"linear_start": 0.00085, "linear_end": 0.012, "scale_factor": 0.18215}
        backbone = LatentDiffusion(path, replace(LDM_ARCHITECTURE, **settings))
        assert backbone.scale == 0.18215
