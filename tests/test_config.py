"""Building a DiffGuard from a config."""

import pytest
import torch
import yaml

import diffguard_pl
from diffguard_pl import InputError


class CountsListings(type):
    """Metaclass that counts how often the subclasses of its class are listed."""

    listings = 0

    def __subclasses__(cls):
        CountsListings.listings += 1
        return super().__subclasses__()


class Counted(torch.nn.Module, metaclass=CountsListings):
    """One of thousands of subclasses, among which a classifier's name is looked for."""


def test_subclasses_of_modules_are_listed_once_in_a_parse(tmp_path):
    config = {"base": "digits_ldm", "model": {"classifier": {"model": "resnet1", "weights": None}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    CountsListings.listings = 0
    with pytest.raises(InputError, match="resnet1"):
        diffguard_pl.load(tmp_path / "mine.yaml")
    assert 1 <= CountsListings.listings <= 4  # of each type, with and without abstract classes
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "digits_ldm"}))
    assert diffguard_pl.load(tmp_path / "mine.yaml").classifier.num_classes == 8
