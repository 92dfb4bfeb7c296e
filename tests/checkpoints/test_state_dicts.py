"""Weights are found wherever in a checkpoint file they are, or the file's keys are named."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffguard_pl import InputError
from diffguard_pl.checkpoints.state_dicts import (
    choose_weights,
    find_weights,
    first_keys,
    is_for_training,
)

FILE = Path("model.pt")


class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, 2)


def state(value: float = 1.0, width: int = 4) -> dict[str, Tensor]:
    """Return a state dict of Net that is filled with one number."""
    return {key: torch.full_like(tensor, value) for key, tensor in Net(width).state_dict().items()}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def chosen(content: object, use_ema: bool = True) -> dict[str, float]:
    """Return the first number of each tensor that is chosen from a file for Net."""
    keys = state().keys()
    found = find_weights(content, keys)
    assert all(weights.is_complete for weights in found)
    tensors = choose_weights(found, use_ema, FILE, "use_ema").tensors
    return {key: float(tensors[key].tensor.flatten()[0]) for key in keys}


def lit_ema(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the averages that CompVis' LitEma keeps of a module with these parameters."""
    parameters = {key: t for key, t in tensors.items() if "running" not in key and "num" not in key}
    counters = {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(7, dtype=torch.int)}
    return counters | {key.replace(".", ""): tensor for key, tensor in parameters.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    "content",
    [
        state(),
        {"model": state(), "optimizer": OPTIMIZER, "epoch": 3},
        {"net": state(), "acc": 0.9},
        {"model_state_dict": state()},
        {"state_dict": prefixed("backbone.", state())},
        {"state_dict": prefixed("model._orig_mod.", state()) | {"criterion.weight": torch.ones(2)}},
        {"module": state(), "buffer_names": [], "optimizer": OPTIMIZER},
        {"n_averaged": torch.tensor(3)} | prefixed("module.", state()),
        {"checkpoint": {"network": prefixed("module.encoder.", state())}},
        prefixed("_orig_mod.", state()) | {"loss_fn.pos_weight": torch.ones(2)},
        {"body": {k[5:]: t for k, t in state().items() if k[:4] == "body"}}
        | {"fc": {k[3:]: t for k, t in state().items() if k[:2] == "fc"}},
        {key.replace("body.0.", "body._orig_mod.0.module."): t for key, t in state().items()},
        {key: t for key, t in state().items() if "num_batches_tracked" not in key}
        | {"body.1.num_batches_tracked": torch.tensor(1)},
        [3, state()],
    ],
    ids=range(14),
)
def test_weights_are_found_in_every_layout(content):
    assert set(chosen(content).values()) == {1.0}


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": state(1), "state_dict_ema": state(2)},
        {"model": state(1), "ema": prefixed("module.", state(2))},
        {"state_dict": prefixed("net.", state(1)) | prefixed("net_ema.module.", state(2))},
        prefixed("model.", state(1)) | prefixed("averaged_model.module.", state(2)),
        state(1) | prefixed("ema_model.", state(2)) | {"ema_model.n_averaged": torch.tensor(3)},
        {
            "model": state(1),
            "ema": prefixed("online_model.", state(1)) | prefixed("ema_model.", state(2)),
        },
    ],
    ids=range(6),
)
def test_averages_are_preferred_unless_the_setting_says_otherwise(content, capsys):
    assert set(chosen(content).values()) == {2.0}
    said = capsys.readouterr().err
    assert said.startswith("checkpoint model.pt: uses the weights of ")
    assert "set use_ema to false" in said
    assert set(chosen(content, use_ema=False).values()) == {1.0}
    assert "set use_ema to true" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda trained, averaged: prefixed("net.", trained) | prefixed("net_ema.", averaged),
        lambda trained, averaged: {
            "state_dict": prefixed("module.model.", trained)
            | prefixed("module.model_ema.", averaged)
        },
        lambda trained, averaged: trained | prefixed("ema.", averaged),
    ],
    ids=range(3),
)
def test_averages_without_dots_in_their_names_replace_the_parameters_alone(wrapped):
    content = wrapped(state(1), lit_ema(state(2)))
    values = chosen(content)
    assert {values[key] for key in ("body.0.weight", "body.1.bias", "fc.weight")} == {2.0}
    assert values["body.1.running_mean"] == 1.0  # a buffer
    assert set(chosen(content, use_ema=False).values()) == {1.0}


def test_averages_alone_are_used_whatever_the_setting_says(capsys):
    assert set(chosen({"ema": state(2)}, use_ema=False).values()) == {2.0}
    assert capsys.readouterr().err == ""


def test_several_sets_of_weights_are_refused_unless_they_are_the_same():
    content = {"student": state(1), "teacher": state(2)}
    with pytest.raises(InputError, match=r"model.pt: .*student, teacher.*save"):
        chosen(content)
    assert set(chosen({"net": state(1), "best": {"net": state(1)}}).values()) == {1.0}
    # the top level is what every program reads
    assert set(chosen(state(1) | prefixed("teacher.", state(2))).values()) == {1.0}


def test_without_all_keys_the_place_with_the_most_is_found():
    some = {key: tensor for key, tensor in state().items() if key != "fc.bias"}
    found = find_weights({"a": {"fc.weight": torch.ones(1)}, "b": prefixed("net.", some)}, state())
    assert [(weights.prefix, weights.is_complete) for weights in found] == [("b.net.", False)]
    assert find_weights({"epoch": 3}, state()) == find_weights(None, state()) == []


def test_the_first_keys_are_those_of_the_largest_dict():
    content = {"ema": {"decay": torch.ones(1)}, "net": prefixed("module.", state())}
    assert first_keys(content).endswith(
        "in net: module.body.0.weight, module.body.0.bias, module.body.1.weight"
    )
    assert "no tensors, but epoch, a" in first_keys({"epoch": 3, "a": 1})
    assert "no tensors, but a list" in first_keys([1])
    assert len(first_keys({"k" * 100_000: torch.ones(1)})) < 200


def test_containers_that_hold_themselves_or_are_deep_are_searched_once():
    content: dict = {"model": state()}
    content["again"] = content["more"] = [content, content]
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert set(chosen(content | {"deep": deep}).values()) == {1.0}
    del deep
    while isinstance(content, dict) and content:
        content.popitem()


def test_what_belongs_to_the_training_is_known_by_its_name():
    for key in ("criterion.weight", "val_loss.mean_value", "layer1.0.total_ops", "train_acc.tp"):
        assert is_for_training(key)
    for key in ("layer1.0.weight", "classifier.bias", "head.fc.weight", "lossless.weight"):
        assert not is_for_training(key)
