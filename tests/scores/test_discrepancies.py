"""Discrepancies: names, range, direction, and each image for itself."""

import sys

import pytest
import torch
import yaml
from helpers import preloaded
from torch.nn.functional import avg_pool2d

import diffguard_pl
from diffguard_pl import Classifier, Detector, InputError
from diffguard_pl.callbacks.scores import ARRAYS
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.digits import digits
from diffguard_pl.names import CASCADE, FUSION, RESERVED
from diffguard_pl.runs.store import Header
from diffguard_pl.scores.discrepancies import DISCREPANCIES, Discrepancies, Seen

OFFLINE = [name for name in DISCREPANCIES if name not in ("dists", "lpips")]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(SmallResNet(5), input_size=48)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    from sklearn.datasets import load_sample_images

    china, flower = (
        torch.tensor(p).permute(2, 0, 1)[None] / 255 for p in load_sample_images().images
    )
    crops = [
        p[:, :, y : y + 192, x : x + 192]
        for p in (china, flower)
        for y, x in ((0, 0), (100, 200), (200, 400))
    ]
    return torch.nn.functional.interpolate(torch.cat(crops), 48, mode="area")


def seen(classifier: Classifier, images: torch.Tensor) -> Seen:
    return Seen.of(images, classifier.view(images), avg_pool2d(images, 4))


@pytest.mark.parametrize("name", OFFLINE)
def test_a_nearer_image_scores_higher_and_a_copy_highest(name, classifier, images):
    score = Discrepancies([name])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    near, far = ((images + amount * noise).clamp(0, 1) for amount in (0.02, 0.3))
    same, close, apart = (
        score(seen(classifier, images), seen(classifier, x))[name] for x in (images, near, far)
    )
    assert (close > apart).float().mean() > 0.8
    assert (same >= close - 1e-6).all()


@pytest.mark.parametrize("name", OFFLINE)
def test_an_image_scores_the_same_whatever_its_batch(name, classifier, images):
    score = Discrepancies([name])
    other = images.flip(0)
    together = score(seen(classifier, images), seen(classifier, other))[name]
    alone = [
        score(seen(classifier, a[None]), seen(classifier, b[None]))[name]
        for a, b in zip(images, other, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=2e-6)


def test_values_by_hand():
    a = Seen(
        torch.zeros(1, 3, 2, 2),
        torch.tensor([[0.0, 0.0]]),
        torch.tensor([[1.0, 0.0]]),
        [torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)],
        torch.tensor([3.0, 0.0]).view(1, 2, 1, 1),
    )
    b = Seen(
        torch.ones(1, 3, 2, 2),
        torch.tensor([[2.0, -1.0]]),
        torch.tensor([[1.0, 1.0]]),
        [torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)],
        torch.tensor([0.0, 4.0]).view(1, 2, 1, 1),
    )
    scores = Discrepancies(["l2", "logits", "features", "kl", "maps", "latents"])(a, b)
    p = torch.tensor([2.0, -1.0]).softmax(0)
    expected = {
        "l2": -(12**0.5),
        "logits": -3.0,
        "features": 0.5**0.5,
        "kl": -(0.5 * (0.5 / p).log()).sum().item(),
        "maps": 0.0,
        "latents": -5.0,
    }
    assert {name: score.item() for name, score in scores.items()} == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("compare_to", ["input", "unguided"])
def test_latents_are_those_that_are_encoded_and_those_that_denoising_ends_with(compare_to):
    diffguard = diffguard_pl.load(
        "digits_ldm", steps=2, discrepancies=["latents"], compare_to=compare_to, slots=4
    )
    images = digits("test").images[:3]
    prediction = diffguard.classify(images)
    inversion = diffguard.invert(images, prediction)
    reconstruction = diffguard.reconstruct(inversion, prediction)
    reference = diffguard.encode(images)
    if compare_to == "unguided":
        reference = reconstruction.unguided_latents
    expected = -(reconstruction.latents - reference).flatten(1).norm(dim=1)
    assert expected.max() < -1e-3
    for scores in (
        diffguard.compare(images, prediction, reconstruction),
        diffguard(images).scores,
    ):
        torch.testing.assert_close(scores["latents"], expected, atol=1e-5, rtol=1e-5)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"discrepancy 'dist'.*: dists, lpips, .*maps"):
        Discrepancies(["dist"])
    with pytest.raises(InputError, match="different names"):
        Discrepancies(["l2", "l2"])


@pytest.mark.parametrize("name", ["dists", "lpips"])
def test_weights_that_cannot_be_downloaded_are_named_with_their_folder(name, monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(InputError, match=rf"vgg16-397923af.pth and {name}_weights.pt.*{tmp_path}"):
        Discrepancies([name])


def test_images_too_small_for_a_discrepancy_are_refused(classifier):
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(InputError, match=r"discrepancies: vif .* 16 px.*choose another"):
        Discrepancies(["vif"])(
            Seen(images, *[torch.zeros(2, 2)] * 2, []), Seen(images, *[torch.zeros(2, 2)] * 2, [])
        )


def test_every_loss_of_the_original_is_a_discrepancy():
    assert set(DISCREPANCIES) >= {
        "dists",
        "lpips",
        "ssim",
        "fsim",
        "vif",
        "mdsi",
        "gmsd",
        "l2",
        "logits",
    }


OWN = '''
import torch
from torch import nn

number = 3


def sharpness(a, b):
    """-|difference of mean absolute gradient| [N]."""
    def of(x):
        return (x[..., 1:] - x[..., :-1]).abs().mean(dim=(1, 2, 3))
    return -(of(a.images) - of(b.images)).abs()


def last_map(a, b):
    return -(a.maps[-1] - b.maps[-1]).flatten(1).norm(dim=1)


def mean_of_all(a, b):
    return (a.images - b.images).abs().mean()


def maps(a, b):
    return sharpness(a, b)


def label(a, b):
    return sharpness(a, b)


def of_one(a):
    return a


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, a, b):
        return -((a.images - b.images).abs().mean(dim=(2, 3)) * self.weight).sum(dim=1)


class Sized(Weighted):
    def __init__(self, size):
        super().__init__()


class Plain:
    def __call__(self, a, b):
        return sharpness(a, b)
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a user's package, on Python's path."""
    (tmp_path / "my_scores").mkdir()
    (tmp_path / "my_scores" / "__init__.py").write_text("")
    (tmp_path / "my_scores" / "looks.py").write_text(OWN)
    (tmp_path / "my_scores" / "broken.py").write_text("1 / 0\n")
    (tmp_path / "my_scores" / "needy.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_scores"]:
        del sys.modules[name]


def test_a_discrepancy_by_its_import_path(own, classifier, images):
    scores = Discrepancies(["maps", "my_scores.looks.sharpness", "my_scores.looks.Weighted"])
    assert scores.names == ["maps", "sharpness", "Weighted"]
    assert scores.needs_classifier
    assert scores.needs_maps
    assert not any(weights.requires_grad for weights in scores.parameters())
    a, b = seen(classifier, images), seen(classifier, images.flip(0))
    found = scores(a, b)
    expected = -((a.images - b.images).abs().mean(dim=(2, 3)) @ torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(found["Weighted"], expected)
    assert list(found) == scores.names
    assert all(value.shape == (6,) and value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_scores.blurs.sharpness", "module 'my_scores.blurs' not found; install it, or start"),
        ("your_scores.looks.sharpness", "module 'your_scores' not found; install it"),
        (
            "my_scores.broken.sharpness",
            "cannot import my_scores.broken .ZeroDivisionError: division by zero",
        ),
        (
            "my_scores.needy.sharpness",
            "cannot import my_scores.needy .No module named 'no_such_library'",
        ),
        (
            "my_scores.looks.sharpnes",
            "unknown name 'sharpnes'.*: sharpness, last_map, .*Weighted",
        ),
        ("my_scores.looks.number", "must be a function .*int"),
        ("my_scores.looks.of_one", "must accept two arguments"),
        ("my_scores.looks.Sized", "constructor must not require arguments; .*defaults"),
        ("my_scores.looks.Plain", "class must be a torch.nn.Module"),
        ("my_scores.looks.maps", "'maps' is reserved; rename"),
        ("my_scores.looks.label", "'label' is reserved; rename"),
    ],
)
def test_an_import_path_to_anything_else_is_refused_in_one_line(path, message, own):
    with pytest.raises(InputError, match=rf"^discrepancies: {path}.*{message}") as error:
        Discrepancies([path])
    assert "\n" not in str(error.value)


def test_an_import_path_given_twice_is_refused(own):
    with pytest.raises(InputError, match="different names"):
        Discrepancies(["my_scores.looks.sharpness", "my_scores.looks.sharpness"])


def test_a_score_of_another_shape_is_refused(own, classifier, images):
    with pytest.raises(
        InputError,
        match=r"my_scores.looks.mean_of_all returned a tensor \[\], .*6 pairs.*\[N\]",
    ):
        Discrepancies(["my_scores.looks.mean_of_all"])(
            seen(classifier, images), seen(classifier, images)
        )


def test_the_reserved_names_are_the_columns_of_a_run():
    columns = Header([], [], {}, list(ARRAYS.values())).schema.names
    assert {*columns, FUSION, CASCADE} == set(RESERVED)


def test_an_import_path_works_in_a_config_on_the_command_line_and_in_a_detector_file(
    own, monkeypatch
):
    settings = {
        "steps": 2,
        "discrepancies": ["my_scores.looks.sharpness", "my_scores.looks.last_map"],
    }
    (own / "mine.yaml").write_text(
        yaml.safe_dump(
            {
                "base": "digits_ldm",
                "model": settings | {"discrepancies": ["my_scores.looks.Weighted"]},
            }
        )
    )
    flags = [
        "--config",
        "mine.yaml",
        "--model.discrepancies",
        "[my_scores.looks.sharpness, my_scores.looks.last_map]",
    ]
    run = [
        "-m",
        "diffguard_pl",
        "calibrate",
        *flags,
        "--data.limit",
        "40",
        "--out",
        "detector.json",
        "--trust",
        "my_scores",
    ]
    done = preloaded.run(run, cwd=own)
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("DIFFGUARD_TRUST", "my_scores")
    detector = Detector.load(own / "detector.json")
    assert detector.score_names[:2] == ["sharpness", "last_map"]
    assert detector.settings["discrepancies"] == settings["discrepancies"]
    images = digits("test").images[:4]
    expected = diffguard_pl.load("digits_ldm", **settings)(images).scores
    found = detector.predict(images)
    torch.testing.assert_close(found.scores, expected["sharpness"].double())
    torch.testing.assert_close(found.all_scores["last_map"], expected["last_map"].double())
    assert (found.all_scores["last_map"] < 0).all()
    detector.save(own / "again.json")
    assert torch.equal(Detector.load(own / "again.json").predict(images).scores, found.scores)
