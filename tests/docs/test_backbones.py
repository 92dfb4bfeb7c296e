"""The pages on diffusion models: their code runs, and their settings and configs exist."""

import inspect
import re

import yaml
from helpers import ROOT

from diffguard_pl import backbones
from diffguard_pl.config import config_names

PAGE = ROOT / "docs" / "reference" / "backbones.md"
OWN = ROOT / "docs" / "how-to" / "own-diffusion-model.md"


def blocks(page, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_code_of_the_page_runs():
    (code,) = blocks(OWN, "python")
    exec(compile(code, str(OWN), "exec"), {"__name__": "page"})


def test_the_settings_of_the_page_are_settings():
    classes = []
    for text in blocks(PAGE, "yaml"):
        backbone = yaml.safe_load(text)["model"]["backbone"]
        kind = getattr(backbones, backbone["class_path"].removeprefix("diffguard_pl.backbones."))
        settings = inspect.signature(kind).bind(**backbone["init_args"]).arguments
        if "architecture" in settings:
            backbones.DDPMArchitecture(**settings["architecture"])
        classes.append(kind.__name__)
    assert set(classes) > {"PixelDiffusion", "DiffusersPipeline", "EDMDiffusion", "TextToImage"}


def test_every_backbone_and_config_is_in_the_table():
    text = PAGE.read_text()
    for name in config_names():
        assert f"`{name}`" in text or not name.startswith("backbones/")
    for name in backbones.__all__:
        if name.endswith(("Diffusion", "Pipeline", "Image")):
            assert f"`{name}`" in text
