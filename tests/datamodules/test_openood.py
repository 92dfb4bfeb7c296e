"""The benchmarks of OpenOOD in the layout of its download script."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import layouts

from diffguard_pl.datamodules import CIFAROODDataModule, ImageNetOODDataModule
from diffguard_pl.datamodules.openood import CIFAR, IMAGENET, IMAGENET_LISTS, SHIFTED
from diffguard_pl.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return layouts.cifar(layouts.imagenet(tmp_path_factory.mktemp("data")))


@pytest.mark.parametrize("benchmark", list(IMAGENET))
def test_imagenet_benchmarks_in_openood_s_layout(benchmark, root):
    data = ImageNetOODDataModule(str(root), benchmark, num_workers=0)
    sets, ind = data.datasets(), IMAGENET_LISTS[benchmark]
    assert list(sets) == [
        ind,
        *[name for group in IMAGENET[benchmark].values() for name in group],
    ]
    assert {name: data.groups[name] for name in list(sets)[1:]} == {
        n: g for g, s in IMAGENET[benchmark].items() for n in s
    }
    for name, loader in data.test_dataloader().items():
        (batch,) = list(loader)
        assert batch["image"].shape == (4, 3, 224, 224), name
        assert batch["unreadable"] == []
        assert batch["label"].tolist() == ([0, 1, 2, 3] if name == ind else [-1] * 4)
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


def test_full_spectrum_adds_the_covariate_shifted_datasets_with_their_classes(root):
    for benchmark, ind in (("openood_v1.5", "imagenet"), ("imagenet200", "imagenet200")):
        data = ImageNetOODDataModule(
            str(root), benchmark, full_spectrum=True, num_workers=0, limit=2
        )
        shifted = [name for name, group in data.groups.items() if group == "csid"]
        assert shifted == list(SHIFTED[ind])
        assert list(data.test_sources())[: len(shifted) + 1] == [ind, *shifted]
        (batch,) = data.test_dataloader()["imagenet_r"]
        assert batch["label"].tolist() == [0, 2]
    assert data.class_names[:2] == ["goldfish", "great white shark"]  # ImageNet's classes 1 and 2
    with pytest.raises(InputError, match=r"data.full_spectrum: .*cifar100.*false"):
        CIFAROODDataModule(str(root), "cifar100", full_spectrum=True)


def test_images_of_imagenet_c_are_neither_enlarged_nor_cropped_as_in_openood(root):
    data = ImageNetOODDataModule(str(root), "imagenet200", full_spectrum=True, num_workers=0)
    image, _ = data.test_sources()["imagenet_c"][0]
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(data.datasets()["imagenet_c"][0]["image"], expected)


def test_only_selects_covariate_shifted_datasets_too(root):
    names = ["imagenet_r", "ninco"]
    data = ImageNetOODDataModule(str(root), "imagenet200", full_spectrum=True, only=names)
    assert data.groups == {"imagenet_r": "csid", "ninco": "near"}
    with pytest.raises(InputError, match=r"data.ood: .*at least one"):
        ImageNetOODDataModule(str(root), "imagenet200", full_spectrum=True, only=["imagenet_r"])
