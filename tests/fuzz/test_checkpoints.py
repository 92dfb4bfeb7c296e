"""Damaged weights: those of the file, or one line that names it."""

import copy
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.mutations import damaged, fuzz, mutated, outcome
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from diffguard_pl.backbones import PixelDiffusion
from diffguard_pl.checkpoints.registry import SHIPPED
from diffguard_pl.checkpoints.tensors import load_tensors
from diffguard_pl.classifiers.zoo import load_weights


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    return layers.eval()


NETWORK = network()
STATE = {name: tensor.clone() for name, tensor in NETWORK.state_dict().items()}
IMAGE = torch.linspace(0, 1, 48).view(1, 3, 4, 4)


def zipped(content: Any) -> bytes:
    return _saved(content, True)


def legacy(content: Any) -> bytes:
    return _saved(content, False)


def _saved(content: Any, in_zip: bool) -> bytes:
    import io

    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=in_zip)
    return file.getvalue()


FORMATS = {
    "a.pt": zipped(STATE),
    "b.pth": legacy({"state_dict": STATE, "epoch": 3}),
    "c.safetensors": save(STATE),
}


def in_safetensors(content: bytes) -> dict[str, Tensor] | None:
    """Return what a safetensors file says, by its specification; None unless it is a plain file."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        types = {"F32": torch.float32, "I64": torch.int64}
        tensors = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            data = bytearray(content[8 + length + start : 8 + length + end])
            dtype = types[entry["dtype"]]
            tensors[name] = torch.frombuffer(data, dtype=dtype).view(entry["shape"])
        return tensors
    except Exception:
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def same(first: Tensor, second: Tensor) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape) and torch.equal(
        first.flatten().view(torch.uint8), second.flatten().view(torch.uint8)
    )


@fuzz(300)
@given(data=st.data())
def test_a_damaged_file_holds_the_tensors_that_were_saved_or_is_refused(folder, data):
    name = data.draw(st.sampled_from(sorted(FORMATS)))
    content = data.draw(damaged(FORMATS[name]))
    (folder / name).write_bytes(content)
    state = outcome(lambda: load_tensors(folder / name))
    if state is None:
        return
    assert all(isinstance(tensor, Tensor) for tensor in state.values())
    if name == "c.safetensors":  # the format has no checksum
        expected = in_safetensors(content)
        assert expected is not None
        assert state.keys() == expected.keys()
        assert all(same(state[key], expected[key]) for key in state)


def nested(state: dict[str, Tensor], name: str) -> Any:
    return {name: state, "epoch": 3, "args": {"lr": 0.1}}


HARMLESS = {
    "as it is": lambda state: state,
    "state_dict": lambda state: nested(state, "state_dict"),
    "module.": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "in float64": lambda state: {
        key: tensor.double() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    },
    "on strides": lambda state: {
        key: tensor.repeat_interleave(2, -1)[..., ::2] if tensor.ndim else tensor
        for key, tensor in state.items()
    },
    "as parameters": lambda state: {
        key: nn.Parameter(tensor) if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    },
}
FATAL = {
    "a key less": lambda state, key: state.pop(key),
    "a key more": lambda state, key: state.update(other=state[key]),
    "another key": lambda state, key: state.update({f"{key}x": state.pop(key)}),
    "another shape": lambda state, key: state.update({key: state[key][None].repeat(2, *[1] * 9)}),
    "empty": lambda state, key: state.update({key: state[key].flatten()[:0]}),
    "integers": lambda state, key: state.update({key: (state[key] * 9).int()}),
    "booleans": lambda state, key: state.update({key: state[key] > 0}),
    "complex": lambda state, key: state.update({key: state[key] * 1j}),
    "nan": lambda state, key: state.update({key: state[key] * float("nan")}),
    "infinite": lambda state, key: state.update({key: state[key] / 0}),
    "no tensor": lambda state, key: state.update({key: state[key].tolist()}),
    "sparse": lambda state, key: state.update({key: state[key].to_sparse()}),
    "meta": lambda state, key: state.update({key: state[key].to("meta")}),
    "quantised": lambda state, key: state.update(
        {key: torch.quantize_per_tensor(state[key], 0.1, 0, torch.qint8)}
    ),
}
WEIGHTS = sorted(key for key, tensor in STATE.items() if tensor.is_floating_point())


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_harmless_change_of_a_file_changes_no_result(folder, name, suffix):
    changed = HARMLESS[name](dict(STATE))
    path = folder / f"harmless{suffix}"
    if suffix == ".pt":
        torch.save(changed, path)
    elif not all(isinstance(value, Tensor) for value in changed.values()):
        pytest.skip("safetensors holds tensors only")
    else:
        save_file({key: tensor.contiguous() for key, tensor in changed.items()}, path)
    model = network()
    nn.init.zeros_(model[0].weight)
    load_weights(model, str(path))
    assert torch.equal(model(IMAGE), NETWORK(IMAGE))


@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize("kind", FATAL)
def test_weights_that_are_not_the_network_s_are_refused(folder, kind, in_zip):
    path = folder / "fatal.pt"
    for key in WEIGHTS:
        state = dict(STATE)
        FATAL[kind](state, key)
        path.write_bytes(_saved(state, in_zip))
        assert outcome(lambda: load_weights(network(), str(path)) or "loaded") is None, key


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("in_zip", [True, False])
def test_no_code_of_a_file_runs(folder, tmp_path, protocol, in_zip):
    ran = tmp_path / "ran"
    for call in (Call(Path.touch, ran), Call(eval, f"open({str(ran)!r}, 'w')"), Call(dict)):
        path = folder / "code.pt"
        content = pickle.dumps({"state_dict": STATE | {"x": call}}, protocol)
        if in_zip:
            with zipfile.ZipFile(path, "w") as file:
                file.writestr("archive/data.pkl", content)
                file.writestr("archive/version", "3\n")
        else:
            path.write_bytes(content)
        outcome(lambda path=path: load_weights(network(), str(path)))
        assert not ran.exists()


CONFIG = json.loads((SHIPPED / "digits_gdm" / "config.json").read_text())


@pytest.fixture(scope="module")
def expected_eps() -> Tensor:
    return eps(PixelDiffusion("digits_gdm"))


@torch.no_grad()
def eps(backbone: PixelDiffusion) -> Tensor:
    x = torch.linspace(-1, 1, 2 * 3 * 256).view(2, 3, 16, 16)
    return backbone.eps(x, torch.tensor([1, 900]), torch.tensor([0, 1]))


@fuzz(60)
@given(config=mutated(CONFIG))
def test_a_mutated_network_is_the_one_that_diffusers_builds_or_is_refused(
    folder, expected_eps, config
):
    from diffusers import UNet2DModel

    copied = folder / "unet"
    copied.mkdir(exist_ok=True)
    weights = copied / "diffusion_pytorch_model.safetensors"
    if not weights.exists():
        weights.symlink_to(SHIPPED / "digits_gdm" / weights.name)
    (copied / "config.json").write_text(json.dumps(config))
    backbone = outcome(lambda: PixelDiffusion(str(copied)))
    if backbone is None:
        return
    predicted = output(backbone)
    if predicted is not None and torch.equal(predicted, expected_eps):
        return
    reference = copy.deepcopy(backbone)
    reference.unet = UNet2DModel.from_pretrained(copied, low_cpu_mem_usage=False).eval()
    by_diffusers = output(reference)
    changed = {key: value for key, value in config.items() if value != CONFIG.get(key)}
    if predicted is None or by_diffusers is None:
        assert predicted is by_diffusers, changed
    else:
        # rounding differs with the layout of tensors
        assert torch.allclose(predicted, by_diffusers, 1e-4, 1e-4, equal_nan=True), changed


def output(backbone: PixelDiffusion) -> Tensor | None:
    """Return what a network predicts; None if it was built but cannot be run."""
    try:
        return eps(backbone)
    except Exception:
        return None
