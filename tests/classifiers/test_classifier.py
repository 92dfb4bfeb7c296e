"""The classifier under protection: one pass gives all, and Grad-CAM is the gradient's."""

import math

import pytest
import torch
from helpers.classifiers import cached_net, photo_tensors
from helpers.golden import NFECounter, squeezenet
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models import resnet18

from diffguard_pl import Classifier, InputError
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.classifiers.zoo import Preprocessing


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
