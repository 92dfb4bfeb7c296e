"""Which layers are chosen, and what they compute, in each family of networks."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from helpers.classifiers import cached_net, photo_tensors
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torchvision.models import VisionTransformer

from diffguard_pl import Classifier
from diffguard_pl.classifiers.classifier import scale_to_unit_range
from diffguard_pl.classifiers.layers import feature_maps
from diffguard_pl.scores.discrepancies import Seen, maps


class Net(NamedTuple):
    """Grad-CAM layer of a network, how to fold its output, its heads, and the width of features."""

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
    "swin_t": Net("norm", channels_last, ["head"], 768),
    "timm/resnet18": Net("layer4", channels_first, ["fc"], 512),
    "timm/convnext_atto": Net("stages", channels_first, ["head.fc"], 320),
    "timm/vit_tiny_patch16_224": Net("blocks.11.norm1", tokens(1), ["head"], 192),
    "timm/deit_tiny_distilled_patch16_224": Net(
        "blocks.11.norm1", tokens(2), ["head", "head_dist"], 2 * 192
    ),
    "timm/swin_tiny_patch4_window7_224": Net("norm", channels_last, ["head.fc"], 768),
}


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
    torch.testing.assert_close(maps(*[Seen.of(photo_tensors(), view)] * 2), torch.ones(2))

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
    images = torch.rand(2, 3, 28, 28)
    view, cam = classifier.view_with_cam(images)
    torch.testing.assert_close(vit.heads.head(view.features), view.logits)
    assert [m.shape for m in view.maps] == [(2, 32, 4, 4)]
    assert (cam.amax((1, 2, 3)) > 0.99).all()
    assert (
        Classifier(vit, input_size=28, cam_layer="conv_proj")
        .view_with_cam(torch.rand(1, 3, 28, 28))[1]
        .std()
        > 0
    )


class TwoHeads(nn.Module):
    """A network that works in place on its feature maps, with an auxiliary head of equal width."""

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
