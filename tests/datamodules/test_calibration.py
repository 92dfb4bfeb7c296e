"""Calibration and training images are not those that metrics are computed on."""

import pytest
from helpers.images import saved

from diffguard_pl import InputError
from diffguard_pl.datamodules import ImageDirectory, OODDataModule
from diffguard_pl.datamodules.digits import digits, held_out


def test_test_images_are_not_calibrated_on(tmp_path):
    saved(digits("test").images[:4], tmp_path / "images", "a")
    source = ImageDirectory(str(tmp_path / "images"))
    data = OODDataModule(
        {"a": source}, {"far": {"b": source}}, image_size=16, resize=16, calibration=source
    )
    data.include_calibration()
    with pytest.raises(
        InputError,
        match=r"data.calibration: shares 4 images .* such as .*a0.png",
    ):
        data.datasets()


def test_baselines_are_not_fitted_to_test_or_calibration_images(tmp_path):
    images = digits("val").images[:4]
    for name in ("ind", "train", "calibration"):
        saved(images, tmp_path / name, name)
    ind, train, calibration = (
        ImageDirectory(str(tmp_path / name)) for name in ("ind", "train", "calibration")
    )
    ood = {"near": {"other": held_out()}}
    settings = {"image_size": 16, "resize": None, "num_workers": 0}
    assert (
        OODDataModule(
            {"ind": ind}, ood, train=train, calibration=calibration, **settings
        ).train_dataloader()
        is not None
    )
    data = OODDataModule({"ind": ind}, ood, train=calibration, calibration=calibration, **settings)
    assert data.train_dataloader() is not None, "nothing is calibrated in this run"
    data.include_calibration()
    with pytest.raises(
        InputError,
        match=r"data.train: shares 4 images with .*calibration, such as .*calibration0.png",
    ):
        data.train_dataloader()
    with pytest.raises(
        InputError, match=r"data.train: shares 4 images with .*ind, such as .*ind0.png"
    ):
        OODDataModule({"ind": ind}, ood, train=ind, **settings).train_dataloader()
