"""DISTS and LPIPS: piq's values from one shared VGG-16."""

from pathlib import Path

import piq
import pytest
import torch
from helpers.golden import GDM_ARCHITECTURE, REFERENCE, squeezenet
from helpers.perceptual import save_perceptual_weights
from torch import Tensor

from diffguard_pl import Classifier, DiffGuard, InputError
from diffguard_pl.backbones import PixelDiffusion
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.scores.piq_scores import FeatureScore, PiqScore, SharedVGG16

LOSSES = {"dists": piq.DISTS, "lpips": piq.LPIPS}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_perceptual_weights(tmp_path_factory.mktemp("torch"))


@pytest.fixture
def torch_home(weights, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(weights))
    return weights


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(squeezenet(), input_size=32)


def diffguard_of(classifier: Classifier) -> DiffGuard:
    """Return a DiffGuard that needs a VGG-16 in four places."""
    return DiffGuard(
        classifier,
        PixelDiffusion(str(REFERENCE / "gdm_unet.pt"), GDM_ARCHITECTURE),
        ClassifierGuidance(cutouts=0),
        steps=4,
        discrepancies=["dists", "lpips", "l2"],
        early_stop={"psnr": 48.5, "dists": 0.4, "lpips": 0.4},
    )


def convolutions(diffguard: DiffGuard) -> list[Tensor]:
    """Return the weights of each VGG-16's first convolution."""
    scores = [*diffguard.discrepancies.piq.values(), *diffguard.stop_metrics.values()]
    return [score.loss.model[0].weight for score in scores]


def test_one_vgg_serves_all_and_none_of_its_weights_is_drawn(torch_home, classifier):
    before = torch.random.get_rng_state()
    diffguard = diffguard_of(classifier)
    assert torch.equal(torch.random.get_rng_state(), before)
    found = convolutions(diffguard)
    assert len(found) == 4
    assert len({weight.data_ptr() for weight in found}) == 1

    # 14.7 million weights once, and no linear layers
    parts = (diffguard.discrepancies, diffguard.stop_metrics)
    tensors = {tensor.data_ptr(): tensor for part in parts for tensor in part.parameters()}
    assert sum(tensor.numel() for tensor in tensors.values()) == 14_714_688
    assert not any(tensor.requires_grad or tensor.is_meta for tensor in tensors.values())
    saved = torch.load(torch_home / "hub" / "checkpoints" / "vgg16-397923af.pth", weights_only=True)
    assert torch.equal(found[0], saved["features.0.weight"])


def test_it_stays_one_on_its_way_to_another_precision(torch_home):
    diffguard = diffguard_of(Classifier(squeezenet(), input_size=32)).double()
    assert len({weight.data_ptr() for weight in convolutions(diffguard)}) == 1
    assert convolutions(diffguard)[0].dtype == torch.float64


@pytest.mark.parametrize(("name", "side"), [("dists", 48), ("dists", 257), ("lpips", 48)])
def test_values_are_those_of_piq_also_in_two_parts(name, side, torch_home):
    vgg16 = SharedVGG16()
    for other in LOSSES:
        PiqScore(other, vgg16)
    score = FeatureScore(name, vgg16)
    with pytest.warns(UserWarning, match="deprecated"):
        theirs = LOSSES[name](reduction="none")
    offset = 1.0 if name == "dists" else 0.0
    count = 2 if side < 256 else 1
    a, b = torch.rand(2, count, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = offset - theirs(a, b).reshape(count)
    assert torch.equal(score(a, b), expected)

    two_parts = score.offset - score.distance(score.features(a), score.features(b))
    torch.testing.assert_close(two_parts, expected, atol=1e-6, rtol=1e-6)
    in_other_layout = score(a.to(memory_format=torch.channels_last), b)
    torch.testing.assert_close(in_other_layout, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["dists", "lpips"])
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("vgg16-397923af.pth", b"PK\x03\x04"),
        ("vgg16-397923af.pth", {"features.0.weight": torch.zeros(2)}),
        ("NAME_weights.pt", b""),
        ("NAME_weights.pt", {"gamma": torch.zeros(2)}),
    ],
)
def test_damaged_weights_are_named(name, file, content, tmp_path, monkeypatch):
    save_perceptual_weights(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / file.replace("NAME", name)
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=rf"discrepancies: {name}: damaged.*{name}_weights.pt"):
        PiqScore(name)
