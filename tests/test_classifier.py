"""The classifier under protection: one pass gives all, and Grad-CAM is the gradient's."""

import pytest
import torch
from conftest import RowCounter, squeezenet
from torch import nn
from torchvision.models import VisionTransformer, resnet18

from diffguard_pl import Classifier, InputError
from diffguard_pl.classifier import yardsticks
from diffguard_pl.smallnet import SmallResNet


@pytest.fixture(scope="module")
def resnet() -> Classifier:
    torch.manual_seed(0)
    return Classifier(resnet18(num_classes=10), input_size=64)


def test_logits_features_maps_and_cam_come_from_one_pass(resnet):
    counter = RowCounter(resnet.model)
    images = torch.rand(3, 3, 64, 64)
    view, cam = resnet.view_with_cam(images)
    assert counter.rows == 3
    assert view.logits.shape == (3, 10)
    assert view.features.shape == (3, 512)
    assert [m.shape[1] for m in view.maps][-1] == 512
    assert cam.shape == (3, 1, 64, 64)
    torch.testing.assert_close(view.logits, resnet(images))
    torch.testing.assert_close(resnet.model.fc(view.features), view.logits)


def test_the_cam_layer_is_the_last_block_and_can_be_set(resnet):
    assert resnet.cam_layer == "layer4"
    assert Classifier(squeezenet(), input_size=64).cam_layer == "features"
    with pytest.raises(InputError, match=r"no layer 'layer5'; it has: .*layer4"):
        Classifier(resnet18(), input_size=64, cam_layer="layer5")


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


def test_a_vision_transformer_has_features_but_needs_a_cam_layer_with_maps():
    vit = VisionTransformer(28, 7, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10)
    assert Classifier(vit, input_size=28).view(torch.rand(2, 3, 28, 28)).features.shape == (2, 32)


def test_yardsticks():
    logits = torch.tensor([[2.0, 0.0], [1000.0, 0.0]])
    scores = yardsticks(logits)
    assert scores["msp"].tolist() == pytest.approx([0.8808, 1.0], abs=1e-4)
    assert scores["max_logit"].tolist() == [2.0, 1000.0]
    assert scores["energy"].tolist() == pytest.approx([2.1269, 1000.0], abs=1e-4)


def test_what_cannot_be_a_classifier_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"torchvision has no model 'resnet51'; near it: .*resnet50"):
        Classifier("resnet51")
    with pytest.raises(InputError, match=r"cannot take a 28x28 image .*set classifier.input_size"):
        Classifier(VisionTransformer(56, 7, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64), input_size=28)
    with pytest.raises(InputError, match="does not return logits"):
        Classifier(nn.Conv2d(3, 8, 1), input_size=16)
    torch.save(SmallResNet(5).state_dict(), tmp_path / "five.pt")
    with pytest.raises(InputError, match=r"five.pt does not fit SmallResNet: fc.weight has another shape"):
        Classifier(SmallResNet(8), str(tmp_path / "five.pt"), input_size=16)


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(InputError, match=rf"resnet50 could not be downloaded .*{tmp_path}"):
        Classifier("resnet50")
