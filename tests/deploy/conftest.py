"""Fixtures of the adapters."""

import pytest
from helpers.adapters import FAST
from torch.utils.data import DataLoader

import diffguard_pl
from diffguard_pl import Detector
from diffguard_pl.config import find_config, read
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """The file of a detector of digits."""
    detector = Detector(diffguard_pl.load("digits_ldm", **FAST, baselines=["msp"]))
    detector.calibrate(DataLoader(spread(digits("val"), 40), 20))
    detector.settings = read(find_config("digits_ldm"))["model"] | FAST | {"baselines": ["msp"]}
    return detector.save(tmp_path_factory.mktemp("detector") / "detector.json")
