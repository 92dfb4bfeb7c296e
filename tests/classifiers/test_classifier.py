"""The classifier under protection: one pass gives all, and Grad-CAM is the gradient's."""

import math
import os
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from helpers.golden import NFECounter, squeezenet
from jsonargparse import ArgumentParser
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torchvision.models import VisionTransformer, get_model_weights, resnet18
from torchvision.transforms.v2.functional import pil_to_tensor

from diffguard_pl import Classifier, InputError
from diffguard_pl.classifiers.classifier import scale_to_unit_range
from diffguard_pl.classifiers.layers import feature_maps
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.classifiers.zoo import Preprocessing
from diffguard_pl.scores.discrepancies import Seen, maps


@pytest.fixture(scope="module")
def resnet() -> Classifier:
    torch.manual_seed(0)
    return Classifier(resnet18(num_classes=10), input_size=64)


def test_logits_features_maps_and_cam_come_from_one_pass(resnet):
    counter = NFECounter(resnet.model)
    images = torch.rand(3, 3, 64, 64)
    view, cam = resnet.view_with_cam(images)
    assert counter.nfe == 3
    assert view.logits.shape == (3, 10)
    assert view.features.shape == (3, 512)
    assert [m.shape[1] for m in view.maps][-1] == 512
    assert cam.shape == (3, 1, 64, 64)
    torch.testing.assert_close(view.logits, resnet(images))
    torch.testing.assert_close(resnet.model.fc(view.features), view.logits)


def test_the_cam_layer_is_the_last_block_and_can_be_set(resnet):
    assert resnet.cam_layer == "layer4"
    assert Classifier(squeezenet(), input_size=64).cam_layer == "features"
    assert (
        Classifier(resnet.model, input_size=64, cam_layer="layer3")
        .view_with_cam(torch.rand(1, 3, 64, 64))[1]
        .std()
        > 0
    )
    with pytest.raises(InputError, match=r"unknown layer 'layer5'; choose from: .*layer4"):
        Classifier(resnet.model, input_size=64, cam_layer="layer5")
    with pytest.raises(InputError, match=r"layer 'fc' returns \[1, 10\], must return feature maps"):
        Classifier(resnet.model, input_size=64, cam_layer="fc")


def test_cam_is_the_mean_gradient_times_the_activation():
    torch.manual_seed(0)
    model = SmallResNet(5).eval()
    classifier = Classifier(model, input_size=16)
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([3, 1])
    _, cam = classifier.view_with_cam(images, labels)
    x = (images - classifier.mean) / classifier.std
    activation = model.stage3(model.stage2(model.stage1(model.stem(x))))
    by_hand = torch.einsum("nc,nchw->nhw", model.fc.weight[labels] / 16, activation).relu()[:, None]
    by_hand = nn.functional.interpolate(by_hand, 16, mode="bilinear")
    low, high = by_hand.amin((2, 3), keepdim=True), by_hand.amax((2, 3), keepdim=True)
    torch.testing.assert_close(cam, (by_hand - low) / (high - low + 1e-7), atol=1e-5, rtol=1e-4)


def test_cam_works_inside_inference_mode(resnet):
    with torch.inference_mode():
        view, cam = resnet.view_with_cam(torch.rand(1, 3, 64, 64))
    assert not view.logits.requires_grad
    assert 0 <= cam.min() <= cam.max() <= 1


def test_labels_below_zero_stand_for_the_predicted_one(resnet):
    images = torch.rand(2, 3, 64, 64)
    predicted = resnet(images).argmax(1)
    with_labels = resnet.view_with_cam(images, torch.tensor([-1, int(predicted[1])]))[1]
    torch.testing.assert_close(with_labels, resnet.view_with_cam(images)[1])


# ---- each family: torchvision's and timm's


class Net(NamedTuple):
    """What is known of an architecture: its Grad-CAM layer and how to fold that, its head, and the features' width."""

    cam_layer: str
    fold: Callable[[Tensor], Tensor]
    heads: list[str]
    width: int


def channels_first(output: Tensor) -> Tensor:
    return output


def channels_last(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def tokens(prefix: int) -> Callable[[Tensor], Tensor]:
    return lambda output: output[:, prefix:].permute(0, 2, 1).reshape(len(output), -1, 14, 14)


NETS = {
    "resnet18": Net("layer4", channels_first, ["fc"], 512),
    "convnext_tiny": Net("features", channels_first, ["classifier.2"], 768),
    "vit_b_16": Net("encoder.layers.encoder_layer_11.ln_1", tokens(1), ["heads.head"], 768),
    "swin_t": Net("norm", channels_last, ["head"], 768),
    "timm/resnet18": Net("layer4", channels_first, ["fc"], 512),
    "timm/convnext_atto": Net("stages", channels_first, ["head.fc"], 320),
    "timm/vit_tiny_patch16_224": Net("blocks.11.norm1", tokens(1), ["head"], 192),
    "timm/deit_tiny_distilled_patch16_224": Net(
        "blocks.11.norm1", tokens(2), ["head", "head_dist"], 2 * 192
    ),
    "timm/swin_tiny_patch4_window7_224": Net("norm", channels_last, ["head.fc"], 768),
}


def random_net(name: str, **settings) -> Classifier:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Classifier(name, weights="random", **settings)


cached_net = lru_cache(maxsize=None)(random_net)


@lru_cache
def photos() -> list[Image.Image]:
    """Two square photographs, 256 px."""
    return [
        Image.fromarray(picture).crop((100, 0, 527, 427)).resize((256, 256))
        for picture in load_sample_images().images
    ]


@lru_cache
def photo_tensors() -> Tensor:
    """[2, 3, 256, 256] in [0, 1]."""
    return torch.stack([pil_to_tensor(photo) for photo in photos()]) / 255


def own_transform(name: str, model: nn.Module) -> Callable:
    """The library's own, of pictures and of tensors."""
    if not name.startswith("timm/"):
        return get_model_weights(name).DEFAULT.transforms()
    from timm.data import create_transform, resolve_model_data_config

    return create_transform(**resolve_model_data_config(model))


@pytest.mark.parametrize("name", NETS)
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


@pytest.mark.parametrize("name", NETS)
def test_one_pass_gives_what_separate_passes_give(name):
    known, net = NETS[name], cached_net(name)
    assert (net.cam_layer, net.heads) == (known.cam_layer, known.heads)
    view, cam = net.view_with_cam(photo_tensors())

    assert view.features.shape == (2, known.width)
    heads = [net.model.get_submodule(head) for head in net.heads]
    parts = view.features.chunk(len(heads), dim=1)
    torch.testing.assert_close(
        sum(head(part) for head, part in zip(heads, parts, strict=True)) / len(heads), view.logits
    )
    assert all(m.ndim == 4 and m.shape[-1] > 1 and m.shape[-1] == m.shape[-2] for m in view.maps)
    torch.testing.assert_close(maps(*[Seen(photo_tensors(), *view)] * 2), torch.ones(2))

    torch.testing.assert_close(cam, cam_by_hand(net, known), atol=1e-5, rtol=1e-4)
    assert cam.shape == (2, 1, 256, 256)
    assert 0 <= cam.min() <= cam.max() <= 1
    assert (cam.flatten(1).std(dim=1) > 0.05).all()


def cam_by_hand(net: Classifier, known: Net) -> Tensor:
    """Grad-CAM by a backward pass through the whole model."""
    kept = []
    layer = net.model.get_submodule(known.cam_layer)
    hook = layer.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = net(photo_tensors().requires_grad_())
    hook.remove()
    (gradient,) = torch.autograd.grad(logits.max(dim=1).values.sum(), kept[0])
    activation, gradient = known.fold(kept[0].detach()), known.fold(gradient)
    small = torch.einsum("nc,nchw->nhw", gradient.mean((2, 3)), activation).clamp(min=0)[:, None]
    side = round(256 * net.crop)
    before = (256 - side) // 2
    inside = scale_to_unit_range(interpolate(small, (side, side), mode="bilinear"))
    return pad(inside, (before, 256 - side - before) * 2)


@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 224), ("timm/vit_tiny_patch16_224", 231), ("swin_t", 247)]
)
def test_cam_is_zero_where_the_crop_does_not_reach(name, side):
    _, cam = cached_net(name).view_with_cam(photo_tensors())
    border = (256 - side) // 2
    outside = torch.ones(256, 256, dtype=torch.bool)
    outside[border : border + side, border : border + side] = False
    assert (cam[:, :, outside] == 0).all()
    inside = cam[:, 0, border : border + side, border : border + side]
    for edge in (inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]):
        assert edge.sum() > 0


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


# ---- preprocessing


def test_images_of_its_size_go_in_as_they_are():
    net, images = cached_net("resnet18"), torch.rand(2, 3, 224, 224)
    torch.testing.assert_close(
        net(images), net.model((images - net.mean) / net.std), atol=0, rtol=0
    )
    as_in_ldm = Classifier(net.model, input_size=256)
    assert as_in_ldm.crop == 1
    assert as_in_ldm.resize_and_crop(photo_tensors()) is photo_tensors()
    assert not torch.allclose(as_in_ldm(photo_tensors()), net(photo_tensors()), atol=0.01)


def test_images_of_any_size_and_shape_are_resized_and_cropped_differentiably():
    torch.manual_seed(0)
    classifier = Classifier(SmallResNet(5), input_size=32, crop=0.8)
    images = torch.rand(2, 3, 100, 60, requires_grad=True)
    expected = interpolate(images, (66, 40), mode="bilinear", antialias=True)[:, :, 17:49, 4:36]
    torch.testing.assert_close(classifier.resize_and_crop(images), expected)
    (gradient,) = torch.autograd.grad(classifier(images).sum(), images)
    seen = gradient.abs().sum((0, 1)) > 0
    assert seen[27:73, 7:53].all()
    assert not seen[:23].any()
    assert not seen[:, :4].any()
    cam = classifier.view_with_cam(images.detach())[1].sum((0, 1))
    rows, columns = cam.sum(1).nonzero(), cam.sum(0).nonzero()
    assert cam.shape == (100, 60)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (26, 73, 6, 53)


def test_an_image_is_classified_alike_in_any_batch():
    classifier = Classifier(SmallResNet(5), input_size=32, crop=0.9, interpolation="bicubic")
    images = torch.rand(5, 3, 50, 50)
    together = classifier(images)
    for i in range(5):
        torch.testing.assert_close(
            classifier(images[i : i + 1])[0], together[i], atol=1e-6, rtol=1e-5
        )


def test_a_module_may_bring_its_preprocessing_and_settings_overrule_it():
    model = SmallResNet(5)
    assert (Classifier(model).input_size, Classifier(model).crop) == (224, 1)
    model.preprocessing = Preprocessing(32, 0.8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    own = Classifier(model)
    assert (own.input_size, own.crop, own.interpolation) == (32, 0.8, "bicubic")
    assert own.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    changed = Classifier(model, input_size=16, mean=(0.5, 0.5, 0.5), interpolation="bilinear")
    assert (changed.input_size, changed.crop, changed.interpolation) == (16, 1, "bilinear")
    assert changed.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    for settings, message in (
        ({"crop": 1.5}, r"classifier\.crop: 1\.5 must be"),
        ({"interpolation": "nearest"}, r"unknown classifier.interpolation 'nearest'"),
    ):
        with pytest.raises(InputError, match=message):
            Classifier(model, **settings)


# ---- layers


def test_the_feature_maps_of_tokens_and_of_channels_last():
    picture = torch.arange(2 * 6 * 4 * 4.0).view(2, 6, 4, 4)
    assert feature_maps(picture) is picture
    assert torch.equal(feature_maps(picture.permute(0, 2, 3, 1)), picture)
    patches = picture.flatten(2).transpose(1, 2)
    for prefix in (0, 1, 5):
        assert torch.equal(
            feature_maps(torch.cat([torch.zeros(2, prefix, 6), patches], dim=1)), picture
        )


def test_a_small_vision_transformer_looks_before_its_last_attention():
    torch.manual_seed(0)
    vit = VisionTransformer(
        28, 7, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    nn.init.normal_(vit.heads.head.weight)
    classifier = Classifier(vit, input_size=28)
    assert classifier.cam_layer == "encoder.layers.encoder_layer_0.ln_1"
    view, cam = classifier.view_with_cam(torch.rand(2, 3, 28, 28))
    assert view.features.shape == (2, 32)
    assert [m.shape for m in view.maps] == [(2, 32, 4, 4)]
    assert (cam.amax((1, 2, 3)) > 0.99).all()
    assert (
        Classifier(vit, input_size=28, cam_layer="conv_proj")
        .view_with_cam(torch.rand(1, 3, 28, 28))[1]
        .std()
        > 0
    )


class TwoHeads(nn.Module):
    """Works in place on its feature maps, and runs an auxiliary head of the same width after the one that gives the logits."""

    def __init__(self):
        super().__init__()
        self.maps, self.head, self.auxiliary = (
            nn.Conv2d(3, 8, 3, stride=2),
            nn.Linear(8, 5),
            nn.Linear(6, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.relu(self.maps(x), inplace=True).mean((2, 3))
        logits = self.head(pooled)
        self.auxiliary(pooled[:, :6])
        return logits


def test_features_are_those_of_the_head_that_gives_the_logits():
    model = TwoHeads()
    view = Classifier(model, input_size=16).view(torch.rand(2, 3, 16, 16))
    torch.testing.assert_close(model.head(view.features), view.logits)


def test_work_in_place_after_a_layer_leaves_its_maps_alone():
    classifier, images = Classifier(TwoHeads(), input_size=16), torch.rand(2, 3, 16, 16)
    view, cam = classifier.view_with_cam(images)
    assert view.maps[0].min() < 0
    torch.testing.assert_close(view.maps[0], classifier.view(images).maps[0])
    assert cam.shape == (2, 1, 16, 16)


# ---- weights and checkpoints


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
    with pytest.raises(
        InputError, match=r"timm/resnet18 needs timm; pip install 'diffguard-pl\[timm\]'"
    ):
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


def test_a_name_from_a_config():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Classifier, "classifier")
    name = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    config = {"model": name, "weights": "random", "mean": [0.5, 0.5, 0.5], "crop": 0.9}
    with pytest.warns(UserWarning, match="random weights"):
        classifier = parser.instantiate_classes(
            parser.parse_object({"classifier": config})
        ).classifier
    assert (classifier.input_size, classifier.crop) == (224, 0.9)
    assert math.isclose(classifier.std[0, 0, 0, 0], 0.5)


def test_what_cannot_be_a_classifier_is_said_in_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"torchvision has no 'resnet51'; similar names: .*resnet50"
    ):
        Classifier("resnet51")
    with pytest.raises(InputError, match=r"torchvision has no 'fcn_resnet50'"):
        Classifier("fcn_resnet50")
    with pytest.raises(
        InputError,
        match=r"unknown weights of resnet50 'IMAGENET1K_V3'; choose from: IMAGENET1K_V1, IMAGENET1K_V2",
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


def test_a_checkpoint_that_does_not_fit_is_said_in_one_line(tmp_path):
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
