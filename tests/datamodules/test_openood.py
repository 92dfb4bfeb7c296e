"""The benchmarks of OpenOOD in the layout of its download script."""

from pathlib import Path

import pytest
from helpers import layouts

from diffguard_pl.datamodules import CIFAROODDataModule, ImageNetOODDataModule
from diffguard_pl.datamodules.openood import CIFAR, IMAGENET


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return layouts.cifar(layouts.imagenet(tmp_path_factory.mktemp("data")))


@pytest.mark.parametrize("benchmark", list(IMAGENET))
def test_imagenet_benchmarks_in_openood_s_layout(benchmark, root):
    data = ImageNetOODDataModule(str(root), benchmark, num_workers=0)
    sets = data.datasets()
    assert list(sets) == [
        "imagenet",
        *[name for group in IMAGENET[benchmark].values() for name in group],
    ]
    assert {name: data.groups[name] for name in list(sets)[1:]} == {
        n: g for g, s in IMAGENET[benchmark].items() for n in s
    }
    for name, loader in data.test_dataloader().items():
        (batch,) = list(loader)
        assert batch["image"].shape == (4, 3, 224, 224), name
        assert batch["unreadable"] == []
        assert batch["label"].tolist() == ([0, 1, 2, 3] if name == "imagenet" else [-1] * 4)
        assert batch["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("benchmark", list(CIFAR))
def test_cifar_benchmarks_in_openood_s_layout(benchmark, root):
    data = CIFAROODDataModule(str(root), benchmark, num_workers=0, limit=2, only=["tin", "svhn"])
    loaders = data.test_dataloader()
    assert list(loaders) == [benchmark, "tin", "svhn"]
    assert data.groups == {"tin": "near", "svhn": "far"}
    (batch,) = list(loaders["svhn"])
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["path"] == ["svhn/test/0000.png", "svhn/test/0002.png"]


def test_imagenet_beside_the_folders_of_images_as_diffguard_s_readme_has_it(tmp_path):
    layouts.imagenet(tmp_path)
    (tmp_path / "images_largescale" / "imagenet_1k").rename(tmp_path / "imagenet_1k")
    data = ImageNetOODDataModule(str(tmp_path), num_workers=0)
    assert "image" in data.datasets()["imagenet"][0]
