"""The contract of data modules, which a foreign data module fulfils by an adapter."""

import subprocess
import sys

import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from diffguard_pl import InputError
from diffguard_pl.config import load_data
from diffguard_pl.datamodules import DigitsDataModule, OODData
from diffguard_pl.datamodules.base import ImageSet


def images(count: int, name: str) -> ImageSet:
    return ImageSet(torch.rand(count, 3, 16, 16), [0] * count, [f"{name}{i}" for i in range(count)])


class Minimal(OODData):
    """All that a data module must implement."""

    def test_sources(self) -> dict[str, Dataset]:
        return {"ind": images(5, "i"), "ood": images(3, "o")}


class Foreign(LightningDataModule):
    """A data module that knows nothing of this package."""

    def test_dataloader(self) -> dict[str, DataLoader]:
        return {"ind": DataLoader(images(5, "i"), 2), "ood": DataLoader(images(3, "o"), 2)}


class ForeignWithTraining(Foreign):
    def __init__(self):
        super().__init__()
        self.groups = {"ood": "near"}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(images(4, "t"), 2)


def loaded(data: OODData) -> dict[str, list[str]]:
    """Paths of the images, as test loaders deliver them."""
    return {
        name: [path for batch in loader for path in batch["path"]]
        for name, loader in data.test_dataloader().items()
    }


def test_test_sources_are_enough_for_a_data_module():
    data = Minimal(batch_size=2)
    assert loaded(data) == {"ind": ["i0", "i1", "i2", "i3", "i4"], "ood": ["o0", "o1", "o2"]}
    assert data.train_dataloader() is None
    with pytest.raises(InputError, match="calibration: not set"):
        data.calibration_dataloader()


def test_shards_limits_and_finished_images_are_left_out_of_the_loaders():
    data = Minimal(batch_size=2, limit=3)
    assert loaded(data)["ind"] == ["i0", "i1", "i3"]
    data.done = {"ind": {1}}
    assert loaded(data)["ind"] == ["i0", "i3"]
    data.use_shard((1, 2))
    assert loaded(data) == {"ind": [], "ood": ["o1"]}


def test_calibration_images_come_second_or_alone():
    class Calibrated(Minimal):
        def calibration_source(self) -> Dataset:
            return images(2, "c")

    data = Calibrated()
    assert list(data.datasets()) == ["ind", "ood"]
    data.include_calibration()
    assert list(data.datasets()) == ["ind", "calibration", "ood"]
    data.include_calibration(alone=True)
    assert loaded(data) == {"calibration": ["c0", "c1"]}


def test_a_data_module_of_the_package_is_not_wrapped():
    data = DigitsDataModule()
    assert OODData.wrap(data) is data


def test_a_foreign_data_module_keeps_its_training_images_and_groups():
    data = OODData.wrap(ForeignWithTraining())
    assert data.groups == {"ood": "near"}
    assert [len(batch["path"]) for batch in data.train_dataloader()] == [2, 2]
    assert data.train_contents() is None, "unknown images must not be cached"
    assert data.contents() == {}


@pytest.mark.parametrize("given", [Foreign(), None])
def test_what_a_foreign_data_module_cannot_do_is_an_error_with_its_name(given):
    data = OODData.wrap(given)
    assert data.train_dataloader() is None
    data.include_calibration()  # its loaders may have calibration images of their own
    name = "Foreign" if given else "plain loaders"
    with pytest.raises(InputError, match=f"shard: .*{name} is not an OODData"):
        data.use_shard((0, 2))
    with pytest.raises(InputError, match=f"{name} is not an OODData.*Detector"):
        data.include_calibration(alone=True)
    with pytest.raises(InputError, match=rf"cascade.skip: .*{name} is not .*skip to false"):
        data.calibration_dataloader()


def test_a_config_names_a_data_module_with_or_without_its_package(tmp_path):
    """In a process of its own, which has not imported the data modules."""
    names = "DigitsDataModule", "diffguard_pl.datamodules.DigitsDataModule"
    for i, name in enumerate(names):
        content = f"data: {{class_path: {name}, init_args: {{limit: 7}}}}\n"
        (tmp_path / f"{i}.yaml").write_text(content)
    code = (
        "from diffguard_pl.config import load_data\n"
        "for i in range(2):\n"
        "    data = load_data([f'{i}.yaml'])\n"
        "    print(type(data).__name__, data.limit)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == 2 * ["DigitsDataModule", "7"], done.stderr


def test_the_adapter_is_no_choice_of_a_config():
    with pytest.raises(InputError) as error:
        load_data(["digits_ldm"], ["--data=DigitDataModule"])
    assert "DigitsDataModule" in str(error.value)
    assert "_Adapter" not in str(error.value)
    assert "OODData," not in str(error.value)
