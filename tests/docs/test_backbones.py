"""docs/backbones.md: its code runs and its settings exist."""

import inspect
import re

import yaml
from helpers import ROOT

from diffguard_pl.backbones import DDPMArchitecture, DiffusersPipeline, PixelDiffusion

PAGE = ROOT / "docs" / "backbones.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_code_of_the_page_runs():
    (code,) = blocks("python")
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})


def test_the_settings_of_the_page_are_settings():
    for text, kind in zip(blocks("yaml"), (PixelDiffusion, DiffusersPipeline), strict=True):
        backbone = yaml.safe_load(text)["model"]["backbone"]
        assert backbone["class_path"] == f"diffguard_pl.backbones.{kind.__name__}"
        settings = inspect.signature(kind).bind(**backbone["init_args"]).arguments
        if "architecture" in settings:
            DDPMArchitecture(**settings["architecture"])
