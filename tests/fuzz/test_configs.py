"""Damaged configs: the method and the data that they describe, or one line."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.mutations import LONGEST_MESSAGE, damaged, fuzz, mutated, outcome
from hypothesis import given
from hypothesis import strategies as st

import diffguard_pl
from diffguard_pl import DiffGuard
from diffguard_pl.commands import evaluate
from diffguard_pl.commands.cli import resolve_configs
from diffguard_pl.config import find_config, load_data, read, with_bases
from diffguard_pl.datamodules.base import OODData
from diffguard_pl.datamodules.digits import digits

FILES = [
    find_config(name).read_bytes() for name in ("digits_ldm", "digits_gdm", "gdm", "small/gdm")
]
MODEL = yaml.safe_load(FILES[0])["model"] | {"steps": 2, "discrepancies": ["maps", "kl"]}
DATA: dict[str, Any] = {
    "class_path": "diffguard_pl.datamodules.OODDataModule",
    "init_args": {
        "ind": {"class_path": "ImageDirectory", "init_args": {"root": "images"}},
        "ood": {
            "near": {"photos": {"class_path": "ImageList", "init_args": {"file": "a", "root": "b"}}}
        },
        "image_size": 16,
        "batch_size": 4,
    },
}
DIGITS = {"class_path": "DigitsDataModule", "init_args": {"limit": 2}}
TRAINER = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("config") / "config.yaml"


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return digits("test").images[:2]


@fuzz(200)
@given(content=st.sampled_from(FILES).flatmap(damaged))
def test_a_damaged_config_is_read_as_yaml_or_named(file, content):
    file.write_bytes(content)
    if (settings := outcome(lambda: read(file))) is not None:
        assert repr(settings) == repr(yaml.safe_load(content))
    if (files := outcome(lambda: with_bases(file))) is not None:
        assert files[-1] == file
        assert all(found.is_file() for found in files)
    outcome(lambda: resolve_configs(["--config", str(file)]))


@fuzz(60)
@given(settings=mutated(MODEL))
def test_a_mutated_model_scores_images_or_is_refused(file, image, settings):
    file.write_text(yaml.safe_dump({"model": settings}))
    model = outcome(lambda: diffguard_pl.load(file))
    if model is None:
        return
    assert isinstance(model, DiffGuard)
    if isinstance(settings.get("steps"), int):
        assert len(model.sampling.schedule.timesteps) <= settings["steps"]
    if settings == MODEL:
        assert outcome(lambda: model(image)) is not None


@fuzz(60)
@given(settings=mutated(DATA))
def test_mutated_data_are_a_data_module_or_refused(file, settings):
    file.write_text(yaml.safe_dump({"data": settings}))
    data = outcome(lambda: load_data([file]))
    assert data is None or isinstance(data, OODData)


@fuzz(15)
@given(settings=mutated({"model": MODEL, "data": DIGITS, "trainer": TRAINER}))
def test_a_mutated_config_of_a_command_is_parsed_or_refused_in_one_line(file, settings):
    file.write_text(yaml.safe_dump(settings))
    said = io.StringIO()
    arguments = list(sys.argv)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            evaluate.main(["--config", str(file), "--print_config"])
    except SystemExit as ended:
        message = ended.code if isinstance(ended.code, str) else said.getvalue()
        if ended.code:
            assert len(message.strip().splitlines()) == 1, message[:1000]
            assert len(message) <= LONGEST_MESSAGE
    finally:
        sys.argv[:] = arguments
