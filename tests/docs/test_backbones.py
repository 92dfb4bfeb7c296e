"""docs/backbones.md: its code runs and its settings exist."""

import inspect
import re

import yaml
from helpers import ROOT

from diffguard_pl.backbones import DiffusersPipeline

PAGE = ROOT / "docs" / "backbones.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_code_of_the_page_runs():
    (code,) = blocks("python")
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})


def test_the_settings_of_the_page_are_settings():
    (text,) = blocks("yaml")
    backbone = yaml.safe_load(text)["model"]["backbone"]
    assert backbone["class_path"] == "diffguard_pl.backbones.DiffusersPipeline"
    inspect.signature(DiffusersPipeline).bind(**backbone["init_args"])
