"""Every network computes in the contiguous layout, in which GroupNorm is exact."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.golden import GDM_ARCHITECTURE, LDM_ARCHITECTURE, squeezenet
from torch import Tensor, nn

from diffguard_pl import Classifier, DiffGuard
from diffguard_pl.backbones import Backbone, LatentDiffusion, PixelDiffusion
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.diffusion.schedule import Schedule, linear_alpha_bar, respaced
from diffguard_pl.layout import keep_contiguous

ATTENTION_AT_32 = replace(GDM_ARCHITECTURE, attention_resolutions=(32, 16))


def offset(network: nn.Module, scale: float) -> None:
    """Give feature maps a mean far above their standard deviation, except at the output.

    Args:
        network: Network with random weights.
        scale: Factor on the weights of the convolutions.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if "conv_out" in name:
            continue
        if parameter.ndim == 4:
            parameter.data *= scale
        elif name.endswith("bias") and "norm" not in name:
            parameter.data += torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def pixel() -> PixelDiffusion:
    with pytest.warns(UserWarning, match="random weights"):
        backbone = PixelDiffusion("random", ATTENTION_AT_32)
    offset(backbone.unet, 0.2)
    return backbone


@pytest.fixture(scope="module")
def latent() -> LatentDiffusion:
    with pytest.warns(UserWarning, match="random weights"):
        backbone = LatentDiffusion("random", LDM_ARCHITECTURE)
    offset(backbone.unet, 0.2)
    offset(backbone.first_stage, 1.0)
    return backbone


def images(count: int, size: int = 32) -> Tensor:
    """Return images [count, 3, size, size] in [0, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest error relative to the largest value."""
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def some_labels(backbone: Backbone, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x, torch.linspace(0, 999, len(x)).long(), torch.arange(len(x))


@pytest.mark.parametrize("name", ["pixel", "latent"])
@torch.no_grad()
def test_a_network_evaluation_against_float64(name, request):
    backbone = request.getfixturevalue(name)
    exact = copy.deepcopy(backbone).double()
    x, t, y = some_labels(backbone, backbone.encode(images(3, backbone.input_size) * 2 - 1))
    eps, expected = backbone.eps(x, t, y), exact.eps(x.double(), t, y)
    assert error(eps, expected) < 2e-5
    alone = [backbone.eps(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)]
    assert error(torch.cat(alone), eps) < 2e-5
    # the layout of the caller does not matter either
    assert error(backbone.eps(x.to(memory_format=torch.channels_last), t, y), expected) < 2e-5


@torch.no_grad()
def test_the_first_stage_against_float64(latent):
    exact = copy.deepcopy(latent).double()
    x = images(3, 64) * 2 - 1
    z = latent.encode(x)
    assert error(z, exact.encode(x.double())) < 2e-5
    assert error(latent.encode(x.to(memory_format=torch.channels_last)), z.double()) < 2e-5
    decoded = latent.decode(z)
    assert error(decoded, exact.decode(z.double())) < 2e-5
    alone = torch.cat([latent.decode(z[i : i + 1]) for i in range(3)])
    assert error(alone, decoded) < 2e-5


def test_with_early_stop_a_reconstruction_does_not_depend_on_its_batch(pixel):
    diffguard = DiffGuard(
        Classifier(squeezenet(), input_size=32),
        pixel,
        ClassifierGuidance(scale=1.0, cutouts=0),
        steps=10,
        discrepancies=["l2"],
        early_stop={"psnr": 55.0},
        forback_skip_diff=2,
        slots=4,
    )
    x = images(5)
    together = diffguard(x)
    assert len(together.stop_index.unique()) > 1
    for i in range(len(x)):
        alone = diffguard(x[i : i + 1])
        assert alone.stop_index == together.stop_index[i]
        assert error(alone.reconstructions[0], together.reconstructions[i]) < 1e-3


class NormFirst(nn.Module):
    """A classifier that begins with the norm, as no conversion of the layout can come before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(3, 3)
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + 20).flatten(1))


def test_a_classifier_with_group_norms_on_images_in_either_layout():
    torch.manual_seed(0)
    classifier = Classifier(NormFirst(), input_size=32, cam_layer="norm")
    exact = copy.deepcopy(classifier).double()
    x = images(4)
    expected = exact(x.double())
    for layout in (torch.contiguous_format, torch.channels_last):
        assert error(classifier(x.to(memory_format=layout)), expected) < 2e-5


class OwnBackbone(Backbone):
    """A diffusion model of a user, with a norm that sees channels-last features."""

    is_pixel_space = True

    def __init__(self) -> None:
        super().__init__(32, None, "resize")
        self.norm = nn.GroupNorm(3, 3)
        self.alpha_bar = linear_alpha_bar()

    def schedule(self, steps: int) -> Schedule:
        return respaced(self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        return images.to(memory_format=torch.channels_last)

    def decode(self, x: Tensor) -> Tensor:
        return x.to(memory_format=torch.channels_last)

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.norm(x.to(memory_format=torch.channels_last) + 20)


def test_a_diffusion_model_of_a_user_and_states_in_its_layout():
    diffguard = DiffGuard(
        Classifier(squeezenet(), input_size=32),
        OwnBackbone(),
        ClassifierGuidance(cutouts=0),
        steps=5,
        discrepancies=["l2"],
    )
    x = images(3)
    assert diffguard.encode(x).is_contiguous()
    assert diffguard.decode(diffguard.encode(x)).guided.is_contiguous()
    t = torch.tensor([1, 2, 3])
    exact = copy.deepcopy(diffguard.backbone).double()
    assert error(diffguard.backbone.eps(x, t, t), exact.eps(x.double(), t, t)) < 2e-5


def test_hooks_are_added_once_and_go_along_with_a_copy(pixel):
    def count(module: nn.Module) -> int:
        return sum(
            len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()
        )

    before = count(pixel)
    assert before > 10
    keep_contiguous(pixel)
    assert count(pixel) == count(copy.deepcopy(pixel)) == before
