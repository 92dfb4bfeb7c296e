"""Weights into diffusers modules: folders in every layout, random weights, memory."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
)
from helpers.golden import GDM_ARCHITECTURE, LDM_ARCHITECTURE
from helpers.originals import GDM_FILE, LDM_FILE, original_state, saved, some_eps
from helpers.small_models import autoencoder, dit, edit_json, output, samples
from safetensors.torch import load_file, save_file

from diffguard_pl import InputError
from diffguard_pl.backbones import (
    DiffusersPipeline,
    LatentDiffusion,
    PixelDiffusion,
)
from diffguard_pl.backbones.diffusers_pipeline import NETWORKS
from diffguard_pl.backbones.load import load_diffusers
from diffguard_pl.checkpoints.registry import SHIPPED


def resave(layout: str, place: Path, network: DiTTransformer2DModel) -> None:
    """The network's folder in another layout that repositories have."""
    config = json.loads((place / "config.json").read_text())
    shutil.rmtree(place)
    if layout == "pickle":
        network.save_pretrained(place, safe_serialization=False)
    elif layout == "shards":
        network.save_pretrained(place, max_shard_size="200KB")
        assert len(list(place.glob("*.safetensors"))) > 2
    elif layout == "pickled shards":
        network.save_pretrained(place, max_shard_size="200KB", safe_serialization=False)
    elif layout == "half alone":
        network.half().save_pretrained(place, variant="fp16")
    elif layout == "variants":
        network.save_pretrained(place)
        for variant in ("fp16", "non_ema"):
            dit(num_layers=1).half().save_pretrained(place, variant=variant)
        network.save_pretrained(place)
    elif layout == "positions":
        network.save_pretrained(place)
        file = place / "diffusion_pytorch_model.safetensors"
        save_file(load_file(file) | {"pos_embed.pos_embed": torch.zeros(1, 16, 32)}, file)
        # as Transformer2DModel, which the published DiT says that it is
        (place / "config.json").write_text(
            json.dumps(config | {"_class_name": "Transformer2DModel", "num_vector_embeds": None})
        )


@pytest.mark.parametrize(
    "layout", ["pickle", "shards", "pickled shards", "half alone", "variants", "positions"]
)
def test_every_layout_loads_as_diffusers_loads_it(layout, copy):
    resave(layout, copy / "transformer", dit())
    ours = DiffusersPipeline(str(copy)).network
    how = {
        "use_safetensors": "pickle" not in layout,
        "variant": "fp16" if layout == "half alone" else None,
    }
    theirs = DiTTransformer2DModel.from_pretrained(copy / "transformer", **how).eval()
    x, t, y = samples(0, 7, 1000)
    assert torch.equal(output(ours, x, t, y), output(theirs, x, t, y))
    assert isinstance(ours, DiTTransformer2DModel)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert not any(tensor.is_meta for tensor in (*ours.parameters(), *ours.buffers()))
    assert not any(p.requires_grad for p in ours.parameters())


def test_attention_by_its_names_of_2022(copy):
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {
        re.sub(r"to_([qkv]|out\.0)", lambda m: names[m[0]], key): tensor
        for key, tensor in load_file(file).items()
    }
    assert any("mid_block.attentions.0.proj_attn.bias" in key for key in old)
    save_file(old, file)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        expected = autoencoder().encode(images).latent_dist.mode() * 0.18215
        torch.testing.assert_close(DiffusersPipeline(str(copy)).encode(images), expected)


def test_a_damaged_config_and_a_folder_without_weights(copy):
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"config.json and \*.safetensors or \*.bin"):
        load_diffusers(NETWORKS, copy / "transformer")
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: missing or not JSON"):
        load_diffusers("AutoencoderKL", copy / "vae")


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


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(),
    reason="the system does not say which memory is shared",
)
@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".pt", marks=pytest.mark.slow)])
def test_weights_are_in_memory_once_however_many_processes_load_them(suffix, tmp_path):
    """Pages of the file itself, which all processes of a machine share; none are copied."""
    file = tmp_path / f"model{suffix}"
    tensors = {"weight": torch.randn(3000, 4000), "bias": torch.randn(3000)}
    save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
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
tensors = load_tensors(Path(sys.argv[1]))
weights = {name: OriginalTensor(name, tensor) for name, tensor in tensors.items()}
module = load_converted(module, weights, Path(sys.argv[1]), {})
for parameter in module.parameters():
    parameter.max()
print(own() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < file.stat().st_size / 4


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [(PixelDiffusion, GDM_ARCHITECTURE), (LatentDiffusion, LDM_ARCHITECTURE)],
)
def test_random_weights_are_the_same_each_time_and_say_so(kind, architecture):
    state = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="scores mean nothing") as warned:
        one = kind("random", architecture)
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="scores mean nothing"):
        two = kind("random", architecture)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(some_eps(one), some_eps(two))
    assert (some_eps(one).std(dim=(1, 2, 3)) > 0.1).all()
    images = torch.linspace(-1, 1, 3 * one.image_size**2).view(1, 3, one.image_size, one.image_size)
    assert one.decode(one.encode(images)).std() > 0.1
    assert not any(parameter.requires_grad for parameter in one.parameters())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sample_size", None),
        ("sample_size", [16, 8]),
        ("layers_per_block", 2**40),
        ("norm_num_groups", "x"),
        ("num_heads", -1),
    ],
)
def test_a_setting_that_a_network_cannot_have_is_refused(tmp_path, setting, value):
    shutil.copytree(SHIPPED / "digits_gdm", tmp_path / "unet")
    edit_json(tmp_path / "unet" / "config.json", **{setting: value})
    with pytest.raises(InputError, match=r"config\.json"):
        PixelDiffusion(str(tmp_path / "unet"))


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    damaged = tensor.clone()
    damaged.view(-1)[-1] = float("nan")
    return damaged


@pytest.mark.parametrize(
    ("damage", "problem"),
    [(with_nan, "has NaN"), (lambda tensor: (100 * tensor).to(torch.int8), "int8.*floating point")],
)
@pytest.mark.parametrize(
    ("file", "kind", "architecture", "key"),
    [
        (GDM_FILE, PixelDiffusion, GDM_ARCHITECTURE, "out.2.weight"),
        (GDM_FILE, PixelDiffusion, GDM_ARCHITECTURE, "middle_block.1.qkv.weight"),
        (LDM_FILE, LatentDiffusion, LDM_ARCHITECTURE, "cond_stage_model.embedding.weight"),
        (
            LDM_FILE,
            LatentDiffusion,
            LDM_ARCHITECTURE,
            "first_stage_model.quantize.embedding.weight",
        ),
    ],
)
def test_weights_with_nan_or_cast_to_integers_are_refused(
    file, kind, architecture, key, damage, problem, tmp_path
):
    state = torch.load(file, weights_only=True)
    tensors = state.get("state_dict", state)
    tensors[key] = damage(tensors[key])
    with pytest.raises(InputError, match=rf"model.pt: its {key} .*{problem}"):
        kind(saved(state, tmp_path / "model.pt"), architecture)


def test_a_diffusers_folder_with_nan_is_refused(copy):
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_in.bias"] = with_nan(tensors["decoder.conv_in.bias"])
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"vae: its decoder.conv_in.bias has NaN"):
        DiffusersPipeline(str(copy))
