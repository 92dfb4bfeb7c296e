"""Checkpoint files are read as tensors only, whole or not at all."""

import pickle
import sys
import types

import pytest
import torch
from helpers.originals import GDM_FILE
from safetensors.torch import save_file

from diffguard_pl import InputError
from diffguard_pl.checkpoints.tensors import load_tensors


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 1000, -1000])
def test_a_truncated_file_is_called_that(suffix, keep, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    state = torch.load(GDM_FILE, weights_only=True)
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    part = tmp_path / f"part{suffix}"
    part.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"part{suffix}.*(truncated|damaged)"):
        load_tensors(part)


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
