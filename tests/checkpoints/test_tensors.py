"""Checkpoint files are read as tensors only, whole or not at all."""

import argparse
import pickle
import re
import sys
import types
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.originals import GDM_FILE
from safetensors.torch import save_file

from diffguard_pl import Classifier, InputError
from diffguard_pl.checkpoints.tensors import load_content, weight_problem


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 1000, -1000])
def test_a_truncated_file_is_called_that(suffix, keep, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    state = torch.load(GDM_FILE, weights_only=True)
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    part = tmp_path / f"part{suffix}"
    part.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"part{suffix}.*(truncated|damaged)"):
        load_content(part)


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
            load_content(tmp_path / name)
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
    assert load_content(tmp_path / "model.ckpt")["state_dict"]["a"].sum() == 2


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


def test_torchscript_is_called_that(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model.pt: is TorchScript.*save its state dict"):
        load_content(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>log in</html>", "web page"),
        (b"PK\x03\x04 and no more", "truncated|damaged"),
        (b"\x80\x02)R.", "damaged|truncated"),
        (b"\x80\x02c" + b"x" * 100_000 + b"\ny\n.", "would run code"),
    ],
    ids=range(5),
)
def test_files_of_other_kinds_end_in_one_line(content, said, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    refuse(tmp_path / "model.pt", said)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02)R.",  # a call without a function
        b"\x80\x02})R.",  # of a dict, a list, a number
        b"\x80\x02])R.",
        b"\x80\x02K\x01)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",  # without arguments
        b"\x80\x02ccollections\nOrderedDict\nK\x01R.",
        b"\x80\x02ctorch\nFloatStorage\nK\x01\x85R.",
        b"\x80\x02cargparse\nNamespace\n)R}(U\x01aK\x01ub.",
        b"\x80\x02h\x07.",  # what was not remembered
        b"\x80\x02]K\x01K\x02s.",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",  # a dict of itself
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"\x80\x02.",
        b"",
    ],
    ids=range(15),
)
def test_a_damaged_pickle_ends_in_one_line(pickled, tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"model/{name}", content)
    refuse(path, "damaged|truncated|no tensors")


def refuse(path: Path, said: str) -> None:
    """Check that a file is refused in a short line, when it is read or when it is searched."""
    with pytest.raises(InputError, match=f"model.pt.*({said})") as error:
        Classifier(torch.nn.Linear(2, 2), str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_an_archive_of_another_kind_is_called_that(tmp_path):
    np.savez(tmp_path / "model.pt.npz", np.ones(3))
    with pytest.raises(InputError, match=r"archive of another kind.*state_dict"):
        load_content(tmp_path / "model.pt.npz")


def test_what_programs_save_beside_the_tensors_is_not_imported(tmp_path):
    about = {
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
        "best": np.float32(0.9),
        "curve": np.ones(3),
        "began": datetime(2026, 1, 1),
    }
    torch.save({"model": {"a": torch.ones(2)}} | about, tmp_path / "last.pth")
    content = load_content(tmp_path / "last.pth")
    assert content["model"]["a"].sum() == 2
    assert not isinstance(content["args"], argparse.Namespace)
