"""Checkpoints: other architectures, other libraries' modules, and files that do not fit."""

import importlib.util
import pickle
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, VQModel
from helpers.golden import GDM_ARCHITECTURE, LDM_ARCHITECTURE, REFERENCE
from helpers.originals import original_state, saved
from safetensors.torch import save_file

from diffguard_pl import InputError
from diffguard_pl.backbones import (
    FirstStageArchitecture,
    LatentDiffusion,
    PixelDiffusion,
)
from diffguard_pl.backbones.convert_guided_diffusion import unet_module_names
from diffguard_pl.backbones.convert_latent_diffusion import load_first_stage
from diffguard_pl.checkpoints.registry import resolve
from diffguard_pl.checkpoints.tensors import load_tensors

GDM, LDM = REFERENCE / "gdm_unet.pt", REFERENCE / "ldm_model.ckpt"


# ------------------------------------------------------------------------------------------------------------ round trips


def test_a_converted_pixel_model_loads_from_its_diffusers_folder(tmp_path):
    original = PixelDiffusion(str(GDM), GDM_ARCHITECTURE)
    original.unet.save_pretrained(tmp_path / "unet")
    again = PixelDiffusion(str(tmp_path / "unet"))
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([10, 900]), torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(original.eps(x, t, y), again.eps(x, t, y))


def test_a_converted_latent_model_loads_from_its_diffusers_folder(tmp_path):
    original = LatentDiffusion(str(LDM), LDM_ARCHITECTURE)
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


def test_safetensors_in_the_original_layout(tmp_path):
    save_file(torch.load(GDM, weights_only=True), tmp_path / "model.safetensors")
    assert PixelDiffusion(str(tmp_path / "model.safetensors"), GDM_ARCHITECTURE).image_size == 32


VARIANTS = [
    {},
    {"resblock_updown": False},
    {"use_scale_shift_norm": False},
    {"learn_sigma": False},
    {"class_cond": True, "num_classes": 7},
    {"num_head_channels": -1, "num_heads": 2},
    {"use_new_attention_order": True},
    {"num_res_blocks": 2, "channel_mult": (1, 2, 3), "attention_resolutions": (16, 8)},
    {"attention_resolutions": (32, 8), "channel_mult": (1, 2, 2)},
]


@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: ",".join(flags) or "plain")
def test_every_flag_of_guided_diffusion_converts(flags, tmp_path):
    architecture = replace(GDM_ARCHITECTURE, **flags)
    state = original_state(architecture)
    backbone = PixelDiffusion(saved(state, tmp_path / "model.pt"), architecture)
    assert sum(p.numel() for p in backbone.unet.parameters()) == sum(
        t.numel() for t in state.values()
    )
    eps = backbone.eps(
        torch.randn(3, 3, 32, 32), torch.tensor([0, 500, 999]), torch.tensor([0, 3, 6])
    )
    assert eps.shape == (3, 3, 32, 32)
    assert eps.isfinite().all()


def test_number_of_heads_survives_the_diffusers_folder(tmp_path):
    architecture = replace(
        GDM_ARCHITECTURE, num_head_channels=-1, num_heads=2, attention_resolutions=(32, 16)
    )
    path = saved(original_state(architecture), tmp_path / "model.pt")
    original = PixelDiffusion(path, architecture)
    heads = {module.heads for module in original.unet.modules() if hasattr(module, "to_q")}
    assert heads == {2}
    original.unet.save_pretrained(tmp_path / "unet")
    again = PixelDiffusion(str(tmp_path / "unet"))
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([100])
    torch.testing.assert_close(original.eps(x, t, t), again.eps(x, t, t))


# ------------------------------------------------------------------------------------------------------ against others'


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
    ours = load_first_stage(tensors, architecture, 1.0, LDM)
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32) * 2 - 1
        latents = theirs["quant_conv"](theirs["encoder"](images))
        torch.testing.assert_close(ours.encode(images).latents, latents, atol=1e-5, rtol=1e-5)
        recon = theirs["decoder"](theirs["post_quant_conv"](theirs["quantize"](latents)[0]))
        torch.testing.assert_close(ours.decode(latents).sample, recon, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(
    not importlib.util.find_spec("guided_diffusion"),
    reason="guided_diffusion is on no registry; the golden files stand in where it is not installed",
)
@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: ",".join(flags) or "plain")
def test_pixel_unet_as_guided_diffusion(flags, tmp_path):
    from guided_diffusion.script_util import create_model

    a = replace(GDM_ARCHITECTURE, **flags)
    theirs = create_model(
        a.image_size,
        a.num_channels,
        a.num_res_blocks,
        channel_mult=",".join(map(str, a.channel_mult)),
        learn_sigma=a.learn_sigma,
        class_cond=a.class_cond,
        attention_resolutions=",".join(map(str, a.attention_resolutions)),
        num_heads=a.num_heads,
        num_head_channels=a.num_head_channels,
        use_scale_shift_norm=a.use_scale_shift_norm,
        resblock_updown=a.resblock_updown,
        use_new_attention_order=a.use_new_attention_order,
    ).eval()
    a = replace(a, num_classes=1000)
    state = original_state(a)
    theirs.load_state_dict(state)
    ours = PixelDiffusion(saved(state, tmp_path / "model.pt"), a)
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([10, 700]), torch.tensor([1, 2])
    with torch.no_grad():
        expected = theirs(x, t, y if a.class_cond else None)[:, :3]
    torch.testing.assert_close(ours.eps(x, t, y), expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"num_channels": 64},
            r"time_embed.0.weight is \[128, 32\], expected \[256, 64\].*num_channels",
        ),
        ({"learn_sigma": False}, r"out.2.*learn_sigma"),
        ({"use_scale_shift_norm": False}, r"emb_layers.1.*use_scale_shift_norm"),
        ({"attention_resolutions": (32, 16)}, r"attentions.*attention_resolutions"),
        ({"resblock_updown": False}, r"resblock_updown"),
        ({"num_res_blocks": 2}, r"num_res_blocks"),
        ({"channel_mult": (1, 3)}, r"channel_mult"),
        ({"class_cond": True}, r"class_embedding.*class_cond"),
    ],
)
def test_a_pixel_checkpoint_of_another_architecture_names_key_and_setting(flags, said):
    with pytest.raises(InputError, match=said) as error:
        PixelDiffusion(str(GDM), replace(GDM_ARCHITECTURE, **flags))
    assert "\n" not in str(error.value)


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
        LatentDiffusion(str(LDM), architecture)


def test_a_pixel_checkpoint_given_to_the_latent_backbone_and_the_other_way_round():
    with pytest.raises(InputError, match="does not fit"):
        LatentDiffusion(str(GDM), LDM_ARCHITECTURE)
    with pytest.raises(InputError, match="does not fit"):
        PixelDiffusion(str(LDM), GDM_ARCHITECTURE)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 1000, -1000])
def test_a_truncated_file_is_called_that(suffix, keep, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    state = torch.load(GDM, weights_only=True)
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    part = tmp_path / f"part{suffix}"
    part.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"part{suffix}.*(truncated|damaged)"):
        load_tensors(part)


def test_missing_files_and_unknown_names():
    with pytest.raises(InputError, match=r"file not found.*digits_gdm, digits_ldm"):
        resolve("nowhere/model.pt")
    with pytest.raises(InputError, match="save_pretrained"):
        PixelDiffusion("digits_ldm")
    with pytest.raises(InputError, match="digits_classifier"):
        resolve("digits")


class Evil:
    def __reduce__(self):
        return print, ("code of the checkpoint ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(zipped, tmp_path, capsys):
    torch.save(
        {"state_dict": {}, "x": Evil()}, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped
    )
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(InputError, match="refused"):
            load_tensors(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_a_lightning_checkpoint_with_callbacks_in_it_loads_without_running_them(
    tmp_path, monkeypatch
):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)

    class ModelCheckpoint:
        def __init__(self):
            raise AssertionError("the callback of the checkpoint was made")

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        content = {
            "state_dict": {"a": torch.ones(2)},
            "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5)}},
        }
        torch.save(content, tmp_path / "model.ckpt")
    assert list(load_tensors(tmp_path / "model.ckpt")) == ["a"]


def test_hosts_are_diffusers_modules_and_frozen():
    pixel, latent = (
        PixelDiffusion(str(GDM), GDM_ARCHITECTURE),
        LatentDiffusion(str(LDM), LDM_ARCHITECTURE),
    )
    assert isinstance(pixel.unet, UNet2DModel)
    assert isinstance(latent.unet, UNet2DConditionModel)
    assert isinstance(latent.first_stage, VQModel)
    assert not any(p.requires_grad for backbone in (pixel, latent) for p in backbone.parameters())
    assert len(dict(unet_module_names(GDM_ARCHITECTURE))) == 20


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(),
    reason="the system does not say which memory is shared",
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_in_memory_once_however_many_processes_load_them(suffix, tmp_path):
    """Pages of the file itself, which all processes of a machine share; none are copied."""
    file = tmp_path / f"model{suffix}"
    tensors = {"weight": torch.randn(3000, 4000), "bias": torch.randn(3000)}
    save_file(tensors, file) if suffix == ".safetensors" else torch.save(
        {"state_dict": tensors}, file
    )
    code = """
import sys, torch
from pathlib import Path
from diffguard_pl.backbones.load import OriginalTensor, load_converted, load_tensors

def own():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

torch.ones(1).sum()
before = own()
with torch.device("meta"):
    module = torch.nn.Linear(4000, 3000)
weights = {name: OriginalTensor(name, tensor) for name, tensor in load_tensors(Path(sys.argv[1])).items()}
module = load_converted(module, weights, Path(sys.argv[1]), {})
for parameter in module.parameters():
    parameter.max()
print(own() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < file.stat().st_size / 4
