"""A run of a shipped config, recorded by the parser, has the settings of that config."""

from typing import Any

import pytest
import yaml
from jsonargparse import ActionConfigFile
from pytorch_lightning import LightningDataModule
from pytorch_lightning.cli import LightningArgumentParser

from diffguard_pl.callbacks.record import names_not_default
from diffguard_pl.config import find_config, settings_of, with_bases
from diffguard_pl.config_errors import import_classes
from diffguard_pl.datamodules import import_data_modules
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.report.paper_settings import changed_settings
from diffguard_pl.report.published import METHODS


def command_line_parser() -> LightningArgumentParser:
    import_data_modules()
    import_classes("model.guidance")
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--base", type=str | None)
    parser.add_lightning_class_args(DiffGuardModule, "model")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    return parser


def recorded_and_not_default(flags: list[str]) -> tuple[dict[str, Any], list[str]]:
    parser = command_line_parser()
    config = parser.parse_args(flags)
    recorded = yaml.safe_load(parser.dump(config, skip_none=False))
    return recorded, names_not_default(parser, config)


ONE_OF_EACH = (
    "cifar10",
    "combine/cifar10_ensemble",
    "combine/gdm_vim",
    "early_stop/dists_0_39",  # which replaces two thresholds by one
    "ablation/gdm_no_x0hat_no_cutouts",
    "ldm",
)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_run_of_a_config_has_no_changed_settings(name: str):
    recorded, not_default = recorded_and_not_default(
        [f"--config={file}" for file in with_bases(name)]
    )
    methods = [method for method in METHODS if method.config == name]
    assert methods
    for method in methods:
        assert changed_settings(method, settings_of(name), recorded, not_default) == []


def test_settings_that_a_config_leaves_at_their_defaults_are_compared():
    flags = ["--model.skip_last_steps=1", "--data.limit=7", "--model.early_stop.psnr=40"]
    recorded, not_default = recorded_and_not_default(
        [f"--config={find_config('gdm')}", *flags, "--data.root=/elsewhere", "--model.slots=4"]
    )
    (method,) = (method for method in METHODS if (method.table, method.config) == (2, "gdm"))
    found = changed_settings(method, settings_of("gdm"), recorded, not_default)
    names = [change.name for change in found]
    assert sorted(names) == ["data.limit", "model.early_stop.psnr", "model.skip_last_steps"]
