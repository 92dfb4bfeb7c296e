"""Files that are taken for checkpoints."""

import pytest
import torch
from safetensors.torch import save

from diffguard_pl import InputError
from diffguard_pl.checkpoints.tensors import load_tensors

STATE = {"weight": torch.ones(2)}


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"", "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Virus scan warning", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "web page"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, name, content, remedy):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=remedy):
        load_tensors(tmp_path / name)


@pytest.mark.parametrize("in_zip", [True, False])
def test_a_file_of_the_other_format_is_to_be_renamed(tmp_path, in_zip):
    torch.save(STATE, tmp_path / "a.safetensors", _use_new_zipfile_serialization=in_zip)
    with pytest.raises(InputError, match=r"rename it to end in \.pt"):
        load_tensors(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "b.pt")
    assert torch.equal(load_tensors(tmp_path / "b.pt")["weight"], STATE["weight"])

    (tmp_path / "c.pt").write_bytes(save(STATE))
    with pytest.raises(InputError, match=r"rename it to end in \.safetensors"):
        load_tensors(tmp_path / "c.pt")
    (tmp_path / "c.pt").rename(tmp_path / "d.safetensors")
    assert torch.equal(load_tensors(tmp_path / "d.safetensors")["weight"], STATE["weight"])
