"""Checkpoint files are read as tensors only, whole or not at all."""

import pickle
import re
import sys
import types

import pytest
import torch
from helpers.originals import GDM_FILE
from safetensors.torch import save_file

from diffguard_pl import InputError
from diffguard_pl.checkpoints.tensors import load_tensors, weight_problem


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


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.tensor([1.0, float("nan")], dtype=torch.bfloat16), "NaN"),
        (torch.tensor([float("inf"), -float("inf")]), "infinite"),
        (torch.tensor([1, 2]), "int64.*floating point"),
        (torch.tensor([1, 2], dtype=torch.int8), "int8.*floating point"),
        (torch.tensor([True, False]), "bool.*floating point"),
        (torch.tensor([1j, 2]), "complex64.*floating point"),
    ],
)
def test_what_cannot_be_a_weight_is_described(values, problem):
    assert re.search(problem, str(weight_problem(values, torch.zeros(2, device="meta"))))


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1.0, -2.0]),
        # the sum overflows, and no value is infinite
        torch.full((100_000,), 60000.0, dtype=torch.float16),
        torch.tensor([3e38, 3e38]),
        torch.tensor([0.0, -float("inf")]),
        torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        torch.zeros(0),
    ],
)
def test_weights_of_any_precision_and_masks_are_none_of_that(values):
    assert weight_problem(values, torch.zeros(values.shape)) is None


def test_an_integer_of_the_module_may_be_one_in_the_file():
    assert weight_problem(torch.tensor(3), torch.tensor(0)) is None
