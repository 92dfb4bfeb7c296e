"""Discrepancies: names, range, direction, and each image for itself."""

import pytest
import torch

from diffguard_pl import Classifier, InputError
from diffguard_pl.discrepancy import NAMES, PIQ, Discrepancies, Seen
from diffguard_pl.smallnet import SmallResNet

OFFLINE = [name for name in NAMES if name not in ("dists", "lpips")]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(SmallResNet(5), input_size=48)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    from sklearn.datasets import load_sample_images

    china, flower = (torch.tensor(p).permute(2, 0, 1)[None] / 255 for p in load_sample_images().images)
    crops = [p[:, :, y : y + 192, x : x + 192] for p in (china, flower) for y, x in ((0, 0), (100, 200), (200, 400))]
    return torch.nn.functional.interpolate(torch.cat(crops), 48, mode="area")


def seen(classifier: Classifier, images: torch.Tensor) -> Seen:
    return Seen(images, *classifier.view(images))


@pytest.mark.parametrize("name", OFFLINE)
def test_a_nearer_image_scores_higher_and_a_copy_highest(name, classifier, pictures):
    score = Discrepancies([name])
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    near, far = ((pictures + amount * noise).clamp(0, 1) for amount in (0.02, 0.3))
    same, close, apart = (score(seen(classifier, pictures), seen(classifier, x))[name] for x in (pictures, near, far))
    assert (close > apart).float().mean() > 0.8
    assert (same >= close - 1e-6).all()


@pytest.mark.parametrize("name", OFFLINE)
def test_an_image_scores_the_same_whatever_its_batch(name, classifier, pictures):
    score = Discrepancies([name])
    other = pictures.flip(0)
    together = score(seen(classifier, pictures), seen(classifier, other))[name]
    alone = [score(seen(classifier, a[None]), seen(classifier, b[None]))[name] for a, b in zip(pictures, other, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=2e-6)


def test_values_by_hand():
    a = Seen(
        torch.zeros(1, 3, 2, 2), torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]), [torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)]
    )
    b = Seen(
        torch.ones(1, 3, 2, 2), torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]]), [torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)]
    )
    scores = Discrepancies(["l2", "logits", "features", "kl", "maps"])(a, b)
    p = torch.tensor([2.0, -1.0]).softmax(0)
    expected = {"l2": -(12**0.5), "logits": -3.0, "features": 0.5**0.5, "kl": -(0.5 * (0.5 / p).log()).sum().item(), "maps": 0.0}
    assert {name: score.item() for name, score in scores.items()} == pytest.approx(expected, abs=1e-6)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(InputError, match=r"no discrepancy 'dist'; there are: dists, lpips, .*maps"):
        Discrepancies(["dist"])
    with pytest.raises(InputError, match="each once"):
        Discrepancies(["l2", "l2"])


@pytest.mark.parametrize("name", ["dists", "lpips"])
def test_weights_that_cannot_be_had_are_named_with_their_place(name, monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(InputError, match=rf"vgg16-397923af.pth and {name}_weights.pt.*{tmp_path}"):
        Discrepancies([name])


def test_images_too_small_for_a_discrepancy(classifier):
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(InputError, match="discrepancy vif cannot take 16 px images"):
        Discrepancies(["vif"])(Seen(images, *[torch.zeros(2, 2)] * 2, []), Seen(images, *[torch.zeros(2, 2)] * 2, []))


def test_every_loss_of_the_original_is_there():
    assert set(PIQ) | {"l2", "logits"} == {"dists", "lpips", "ssim", "fsim", "vif", "mdsi", "gmsd", "l2", "logits"}
