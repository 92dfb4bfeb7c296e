"""Classifiers by name: preprocessing, weights, and what cannot be loaded."""

import argparse
import os
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.classifiers import SMALL_NETWORKS, cached_net, photo_tensors, photos, random_net
from torch import nn
from torchvision.models import ResNet, VisionTransformer, get_model_weights
from torchvision.models.resnet import BasicBlock

from diffguard_pl import Classifier, InputError
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.classifiers.zoo import Preprocessing


def own_transform(name: str, model: nn.Module) -> Callable:
    """The library's own, of pictures and of tensors."""
    if not name.startswith("timm/"):
        return get_model_weights(name).DEFAULT.transforms()
    from timm.data import create_transform, resolve_model_data_config

    return create_transform(**resolve_model_data_config(model))


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_logits_are_those_of_the_bare_model_after_the_librarys_preprocessing(name):
    net = cached_net(name)
    transform = own_transform(name, net.model)
    with torch.no_grad():
        of_tensor, of_picture = net.model(
            torch.stack([transform(photo_tensors()[0]), transform(photos()[0])])
        )
        (ours,) = net(photo_tensors()[:1])
    torch.testing.assert_close(ours, of_tensor, atol=1e-5, rtol=1e-5)
    # the transforms of a PIL picture round each pixel to 1/255
    assert (ours - of_picture).abs().max() < 0.04 * of_picture.std()


def test_names_carry_their_preprocessing():
    net = cached_net("timm/vit_tiny_patch16_224")
    assert (net.input_size, net.interpolation, net.mean.flatten().tolist()) == (
        224,
        "bicubic",
        [0.5, 0.5, 0.5],
    )
    assert round(net.input_size / net.crop) == 248  # of 0.9, rounded down as timm does
    paper, newest = (random_or_paper("resnet50", weights) for weights in ("IMAGENET1K_V1", None))
    assert (paper.crop, newest.crop) == (224 / 256, 224 / 232)
    swag = random_or_paper("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert (swag.input_size, swag.crop, swag.interpolation) == (384, 1, "bicubic")


def random_or_paper(name: str, weights: str | None) -> Preprocessing:
    from diffguard_pl.classifiers.zoo import load_model

    with torch.device("meta"):
        return load_model(name, weights, download=False).preprocessing


def test_class_names():
    assert cached_net("resnet18").class_names[:2] == ["tench", "goldfish"]
    assert cached_net("timm/convnext_atto").class_names[:2] == ["tench", "goldfish"]
    assert Classifier(SmallResNet(5), input_size=16).class_names is None


def test_random_weights_are_the_same_each_time_and_come_with_a_warning():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    with pytest.warns(
        UserWarning, match="^classifier: random weights, for a dry run; scores mean nothing$"
    ) as caught:
        first = Classifier("resnet18", weights="random")
    assert [warning.filename for warning in caught] == [__file__]
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    second = random_net("resnet18")
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True)
    )


def test_timm_random_weights_are_the_same_each_time():
    name = "timm/convnext_atto"
    a, b = (net.model.state_dict().values() for net in (random_net(name), cached_net(name)))
    assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("layout", ["plain", "state_dict", "module.", "model.module."])
def test_a_checkpoint_of_openoods_imagenet_network_loads_in_each_layout(
    layout, tmp_path, monkeypatch
):
    net = cached_net("resnet18")
    state = {
        (layout if layout.endswith(".") else "") + key: tensor
        for key, tensor in net.model.state_dict().items()
    }
    torch.save(
        state if layout == "plain" else {"state_dict": state, "epoch": 3}, tmp_path / "net.pth"
    )
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    loaded = Classifier("resnet18", str(tmp_path / "net.pth"), weights="IMAGENET1K_V1")
    torch.testing.assert_close(loaded(photo_tensors()), net(photo_tensors()))


def test_downloaded_weights_are_used_and_read_as_tensors_only(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    file = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    net = cached_net("resnet18")
    torch.save(net.model.state_dict(), file)
    torch.testing.assert_close(Classifier("resnet18")(photo_tensors()), net(photo_tensors()))
    torch.save(Harmful(tmp_path / "harm"), file)
    with pytest.raises(
        InputError, match=r"classifier\.weights: .*resnet18 cannot be downloaded or read"
    ):
        Classifier("resnet18")
    assert not (tmp_path / "harm").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def no_network(*_, **__):
    raise OSError("no network")


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(
        InputError,
        match=rf"resnet50 cannot be downloaded .*save https:.*resnet50-0676ba61.pth in {tmp_path}",
    ):
        Classifier("resnet50", weights="IMAGENET1K_V1")


def test_timm_weights_that_cannot_be_downloaded(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr("timm.models._hub.hf_hub_download", no_network)
    with pytest.raises(
        InputError,
        match=r"timm/resnet18.tv_in1k cannot .*download model.safetensors of https://huggingface.co/timm/resnet18.tv_in1k",
    ):
        Classifier("timm/resnet18", weights="tv_in1k")


def test_timm_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm/resnet18 needs timm; pip install timm"):
        Classifier("timm/resnet18")


def test_a_name_that_timm_does_not_know():
    pytest.importorskip("timm")
    for arguments, message in (
        (
            ("timm/vit_tinny_patch16_224",),
            r"timm has no 'vit_tinny_patch16_224'; similar names: .*vit_tiny_patch16_224",
        ),
        (
            ("timm/resnet18.tv_in2k",),
            r"unknown weights of timm/resnet18 'tv_in2k'; choose from: .*tv_in1k",
        ),
        (("timm/vit_small_patch14_dinov2.lvd142m",), r"returns features .*; choose"),
        (
            ("timm/resnet33ts", None, "nobodys"),
            r"unknown weights of timm/resnet33ts 'nobodys'; choose from: ra2_in1k",
        ),
    ):
        with pytest.raises(InputError, match=message):
            Classifier(*arguments)


def test_what_cannot_be_a_classifier_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"torchvision has no 'resnet51'; similar names: .*resnet50"
    ):
        Classifier("resnet51")
    with pytest.raises(InputError, match=r"torchvision has no 'fcn_resnet50'"):
        Classifier("fcn_resnet50")
    with pytest.raises(
        InputError,
        match=r"unknown weights of resnet50 'IMAGENET1K_V3'; choose from: .*IMAGENET1K_V2",
    ):
        Classifier("resnet50", weights="IMAGENET1K_V3")
    with pytest.raises(InputError, match="random and a checkpoint exclude each other"):
        Classifier("resnet18", "file.pt", weights="random")
    with pytest.raises(InputError, match=r"classifier\.weights: .*by name, not a SmallResNet; set"):
        Classifier(SmallResNet(5), weights="IMAGENET1K_V1")
    with pytest.raises(InputError, match=r"does not support 28x28 .*set classifier.input_size"):
        Classifier(
            VisionTransformer(56, 7, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64),
            input_size=28,
        )
    with pytest.raises(InputError, match="must return logits"):
        Classifier(nn.Conv2d(3, 8, 1), input_size=16)


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path):
    state = SmallResNet(5).state_dict()
    torch.save(state, tmp_path / "five.pt")
    with pytest.raises(
        InputError,
        match=r"five.pt does not fit SmallResNet, .*fc.weight is \[5, 128\], expected \[8, 128\]",
    ):
        Classifier(SmallResNet(8), str(tmp_path / "five.pt"), input_size=16)
    torch.save(state | {"more": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(
        InputError,
        match=r"does not fit SmallResNet, its more is unexpected; check classifier.model",
    ):
        Classifier(SmallResNet(5), str(tmp_path / "more.pt"), input_size=16)
    torch.save(
        {key: tensor for key, tensor in state.items() if key != "fc.bias"}, tmp_path / "less.pt"
    )
    with pytest.raises(InputError, match=r"does not fit SmallResNet, its fc.bias is missing"):
        Classifier(SmallResNet(5), str(tmp_path / "less.pt"), input_size=16)


@pytest.mark.parametrize(
    ("key", "damage", "problem"),
    [
        ("fc.weight", lambda weight: weight * float("nan"), "NaN"),
        ("fc.bias", lambda bias: (100 * bias).to(torch.int8), "int8.*floating point"),
    ],
)
def test_weights_with_nan_or_cast_to_integers_are_refused(key, damage, problem, tmp_path):
    state = SmallResNet(5).state_dict()
    assert key in state
    torch.save(state | {key: damage(state[key])}, tmp_path / "classifier.pt")
    with pytest.raises(InputError, match=rf"classifier.checkpoint: .*its {key} .*{problem}"):
        Classifier(SmallResNet(5), str(tmp_path / "classifier.pt"), input_size=16)
    torch.save(state, tmp_path / "classifier.pt")
    Classifier(SmallResNet(5), str(tmp_path / "classifier.pt"), input_size=16)


@pytest.mark.parametrize("key", ["model", "net", "model_state_dict"])
def test_a_checkpoint_of_a_training_program_opens(key, tmp_path):
    net = SmallResNet(5)
    state = {f"module.backbone.{name}": tensor for name, tensor in net.state_dict().items()}
    about = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}
    beside = {"criterion.weight": torch.ones(5), "n_averaged": torch.tensor(2)}
    torch.save({key: state | beside} | about, tmp_path / "last.pt")
    loaded = Classifier(SmallResNet(5), str(tmp_path / "last.pt"), input_size=16)
    assert torch.equal(loaded.model.fc.weight, net.fc.weight)


def test_averaged_weights_are_used_and_named(tmp_path, capsys):
    trained, averaged = SmallResNet(5), SmallResNet(5)
    content = {"state_dict": trained.state_dict(), "state_dict_ema": averaged.state_dict()}
    torch.save(content, tmp_path / "last.pt")
    path = str(tmp_path / "last.pt")
    for use_ema, expected in ((True, averaged), (False, trained)):
        loaded = Classifier(SmallResNet(5), path, input_size=16, use_ema=use_ema)
        assert torch.equal(loaded.model.fc.weight, expected.fc.weight)
        assert "set classifier.use_ema to" in capsys.readouterr().err


def test_of_a_teacher_and_a_student_the_one_that_fits_is_used(tmp_path):
    student, teacher = SmallResNet(5), SmallResNet(6)
    content = {"teacher": teacher.state_dict(), "student": student.state_dict()}
    torch.save(content, tmp_path / "both.pt")
    loaded = Classifier(SmallResNet(5), str(tmp_path / "both.pt"), input_size=16)
    assert torch.equal(loaded.model.fc.weight, student.fc.weight)


def test_a_larger_network_of_the_same_family_is_refused(tmp_path):
    small, large = ResNet(BasicBlock, [1, 1, 1, 1]), ResNet(BasicBlock, [1, 2, 1, 1])
    torch.save({"model": large.state_dict()}, tmp_path / "large.pt")
    with pytest.raises(InputError, match=r"large.pt .*its layer2.1.conv1.weight is unexpected"):
        Classifier(small, str(tmp_path / "large.pt"))


def test_a_checkpoint_of_another_network_names_its_keys(tmp_path):
    state = {f"module.{key}": tensor for key, tensor in SmallResNet(5).state_dict().items()}
    torch.save({"net": state}, tmp_path / "other.pt")
    with pytest.raises(
        InputError, match=r"does not fit .*keys in net: module\.stem.*; check"
    ) as error:
        Classifier(nn.Sequential(nn.Conv2d(3, 8, 3)), str(tmp_path / "other.pt"))
    assert len(str(error.value)) < 500
    with pytest.raises(InputError, match=r"its module.fc.weight is \[5, 128\]"):
        Classifier(SmallResNet(8), str(tmp_path / "other.pt"), input_size=16)
