"""Configs and detector files import from packages that the user trusts, and from no others."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import diffguard_pl
from diffguard_pl import Detector, InputError
from diffguard_pl.__main__ import main
from diffguard_pl.config import config_names, find_config, load, read, settings_of
from diffguard_pl.deploy.detector_file import CHECKSUM, checksum, shipped_detector
from diffguard_pl.trusted import VARIABLE, check_imports, without_flags


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture
def module(tmp_path: Path, monkeypatch) -> Path:
    """A module that tells when it was imported."""
    (tmp_path / "strange.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_name('imported').touch()\n"
        "def sharpness(a, b):\n    return a.flatten(1).sum(1) - b.flatten(1).sum(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strange", raising=False)
    return tmp_path / "imported"


STRANGE = [
    {"model": {"discrepancies": ["strange.sharpness"]}},
    {"model": {"baselines": {"strange.Score": {"K": 3}}}},
    {"model": {"path_scores": ["strange.Score"]}},
    {"model": {"backbone": {"class_path": "strange.Model", "init_args": {"a": 1}}}},
    {"model": {"classifier": {"model": "strange.make_model"}}},
    {"model": {"classifier": {"model": {"class_path": "strange.Net"}}}},
    {"data": {"class_path": "strange.Data"}},
    {"data": {"init_args": {"ood": {"near": {"a": {"class_path": "strange.pt"}}}}}},
    {"trainer": {"callbacks": [{"class_path": "strange.Callback"}]}},
    {"trainer": {"logger": "strange.Logger"}},
]


@pytest.mark.parametrize("settings", STRANGE, ids=str)
def test_a_config_that_names_another_package_is_refused_before_it_is_imported(
    settings, tmp_path, module
):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"base": "digits_ldm"} | settings))
    with pytest.raises(InputError, match=r"names strange\.\w+, .*not trusted; .*--trust strange"):
        read(config)
    with pytest.raises(SystemExit, match="--trust strange"):
        main(["test", "--config", str(config)])
    assert not module.exists()


@pytest.mark.parametrize("way", ["flag", "variable", "python"])
def test_what_the_user_trusts_is_imported(way, tmp_path, module, monkeypatch):
    config = tmp_path / "config.yaml"
    config.write_text("{base: digits_ldm, model: {discrepancies: [strange.sharpness]}}")
    if way == "flag":
        assert without_flags(["--a", "--trust", "strange", "b", "--trust=other,more"]) == [
            "--a",
            "b",
        ]
    elif way == "variable":
        monkeypatch.setenv(VARIABLE, "other,strange")
    else:
        diffguard_pl.trust("strange")
    assert load(config).score_names[0] == "sharpness"
    assert module.exists()


def test_a_detector_file_that_names_another_package_is_refused(tmp_path, module):
    file = shutil.copy(shipped_detector("digits_ldm"), tmp_path / "detector.json")
    content = json.loads(Path(file).read_text())
    content["model"]["discrepancies"] = ["strange.sharpness"]
    content[CHECKSUM] = checksum(content)
    Path(file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"detector\.json: .*names strange\.sharpness"):
        Detector.load(file)
    assert not module.exists()


def test_shipped_configs_and_common_values_are_trusted():
    for name in config_names():
        read(find_config(name))
    harmless = {
        "model": {
            "classifier": {"model": "timm/vit_base.augreg_in21k", "checkpoint": "a.b.pt"},
            "second_network": {"model": "weights.safetensors"},
            "discrepancies": ["l2", "diffguard_pl.scores.discrepancies.L2"],
        },
        "data": {"class_path": "DigitsDataModule", "init_args": {"file": "lists.txt"}},
        "trainer": {"logger": {"class_path": "pytorch_lightning.loggers.CSVLogger"}},
    }
    check_imports(harmless, "here")
    check_imports(settings_of("digits_ldm"), "here")


def test_a_wrong_name_is_refused():
    for name in ("my-package", "a.b", ""):
        with pytest.raises(InputError, match=r"--trust .*must be the name of a package"):
            without_flags(["--trust", name])
