"""Converted copies: equal to the original, and used as long as they are up to date."""

import json
import os
from dataclasses import replace

import pytest
import torch
import yaml
from helpers.files import leftovers
from helpers.golden import GDM_ARCHITECTURE, LDM_ARCHITECTURE
from helpers.originals import GDM_FILE, LDM_FILE, some_eps
from safetensors.torch import load_file, save_file

from diffguard_pl.backbones import LatentDiffusion, PixelDiffusion
from diffguard_pl.backbones.save_converted import save_converted
from diffguard_pl.checkpoints.converted import (
    architecture_record,
    converted_or_original,
    known_architecture,
)
from diffguard_pl.commands import checkpoints


@pytest.fixture(params=["gdm", "ldm"])
def converted(request, tmp_path):
    """A checkpoint, its backbone and architecture, and its converted copy."""
    kind, file, a = {
        "gdm": (PixelDiffusion, GDM_FILE, GDM_ARCHITECTURE),
        "ldm": (LatentDiffusion, LDM_FILE, LDM_ARCHITECTURE),
    }[request.param]
    path = tmp_path / f"model{file.suffix}"
    path.write_bytes(file.read_bytes())
    (tmp_path / "architecture.yaml").write_text(
        yaml.safe_dump(architecture_record(a)["architecture"])
    )
    checkpoints.main(["convert", str(path), "--architecture", str(tmp_path / "architecture.yaml")])
    return kind, path, a, tmp_path / "model-diffusers"


def test_the_converted_copy_gives_the_same_and_is_used_by_itself(converted):
    kind, path, a, copy = converted
    original = some_eps(kind(str(GDM_FILE if kind is PixelDiffusion else LDM_FILE), a))
    assert torch.equal(some_eps(kind(str(path), a)), original)
    assert torch.equal(some_eps(kind(str(copy))), original)
    (weights,) = (copy if kind is PixelDiffusion else copy / "unet").glob("*.safetensors")
    marked = {
        key: 2 * tensor if key == "conv_out.weight" else tensor
        for key, tensor in load_file(weights).items()
    }
    save_file(marked, weights)
    assert not torch.equal(some_eps(kind(str(path), a)), original)  # so the copy is what was loaded
    os.utime(path)
    assert torch.equal(some_eps(kind(str(path), a)), original)


def test_a_copy_of_another_file_or_architecture_is_not_used(converted):
    _, path, a, copy = converted
    other = replace(a, num_heads=2, num_head_channels=-1)
    assert converted_or_original(path, other) == path
    assert converted_or_original(path, a) == copy
    os.utime(path, ns=(0, 0))
    assert converted_or_original(path, a) == path
    save_converted(path, architecture=path.with_name("architecture.yaml"))
    assert converted_or_original(path, a) == copy
    (copy / "converted.json").write_text('{"size": ')
    assert converted_or_original(path, a) == path


def test_a_copy_records_what_it_was_made_from(converted):
    _, path, a, copy = converted
    note = json.loads((copy / "converted.json").read_text())
    assert note["source"] == path.name
    assert note["size"] == path.stat().st_size
    assert note["mtime_ns"] == path.stat().st_mtime_ns
    assert note["architecture"]["image_size"] == a.image_size


def test_the_copy_of_a_name_does_without_the_file(published, server, checkpoint_cache):
    checkpoints.main(["convert", "tiny"])
    original = some_eps(PixelDiffusion("tiny"))
    (checkpoint_cache / "tiny_uncond.pt").unlink()
    server.asked.clear()
    backbone = PixelDiffusion("tiny")
    assert torch.equal(some_eps(backbone), original)
    assert server.asked == []
    assert leftovers(checkpoint_cache) == ["tiny"]
    # the folder, given as one, brings the noise schedule of the name
    assert (
        known_architecture(checkpoint_cache / "tiny", type(GDM_ARCHITECTURE))
        == published.architecture
    )
    assert torch.equal(PixelDiffusion(str(checkpoint_cache / "tiny")).alpha_bar, backbone.alpha_bar)
