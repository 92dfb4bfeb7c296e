"""What a command must not import, looked up in ``sys.modules`` when it ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffguard_pl.__main__ import COMMANDS
from diffguard_pl.commands import evaluate

HEAVY = (
    "torch",
    "pytorch_lightning",
    "diffusers",
    "torchmetrics",
    "piq",
    "scipy.stats",
    "matplotlib",
    "pandas",
    "sklearn",
    "plotly",
    "jsonargparse",
)
EVALUATIONS = ("test", "calibrate")
"""Commands whose ``--help`` lists the settings of models, data and trainer."""
LIST_LOADED = """
import atexit, json, sys

def show():
    # A postponed module has a stand-in until it is used.
    loaded = [name for name, module in sys.modules.items() if "Postponed" not in str(type(module))]
    print("\\n" + json.dumps(loaded))

atexit.register(show)
sys.argv[1:] = json.loads(sys.argv[1])
"""
RUN_COMMAND = "from diffguard_pl.__main__ import main\nmain()\n"
SCORE_ONE_IMAGE = """
import diffguard_pl.datamodules.reading, diffguard_pl.datamodules.sources
from PIL import Image
from diffguard_pl import Detector
Detector.load("digits_ldm", device="cpu").predict([Image.new("RGB", (16, 16))])
"""


def loaded_by(code: str, *args: str, cwd: Path) -> set[str]:
    """Run code in a process of its own; return the names of the modules that it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_LOADED + code, json.dumps(args)],
        cwd=cwd,
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("startup") / "run"
    quick = ["--data.limit", "4", "--model.steps", "5", "--page.enabled", "false"]
    evaluate.main([*quick, "--trainer.default_root_dir", str(folder)])
    return folder


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in EVALUATIONS])
def test_help_imports_nothing_heavy(command, tmp_path):
    assert not loaded_by(RUN_COMMAND, command, "--help", cwd=tmp_path) & set(HEAVY)


def test_help_of_an_evaluation_imports_no_diffusion_model_or_table(tmp_path):
    loaded = loaded_by(RUN_COMMAND, "test", "--help", cwd=tmp_path)
    assert "diffguard_pl.callbacks.trackers" in loaded
    assert not loaded & {"diffusers", "pandas", "piq", "plotly", "sklearn", "wandb"}


def test_listing_checkpoints_imports_nothing_heavy(tmp_path):
    assert not loaded_by(RUN_COMMAND, "checkpoints", "list", cwd=tmp_path) & set(HEAVY)


def test_a_report_is_made_without_torch(small_run, tmp_path):
    arguments = ("report", str(small_run), "--compare", "paper")
    loaded = loaded_by(RUN_COMMAND, *arguments, cwd=tmp_path)
    assert not loaded & {"torch", "pytorch_lightning", "diffusers", "scipy.stats", "sklearn"}


def test_a_detector_decides_without_what_only_evaluations_need(tmp_path):
    loaded = loaded_by(SCORE_ONE_IMAGE, cwd=tmp_path)
    assert "torch" in loaded
    assert not loaded & {
        "diffusers.models.transformers",
        "matplotlib",
        "pandas",
        "piq",
        "pytorch_lightning",
        "scipy.stats",
        "torch._dynamo",
        "torchmetrics",
        "torchvision.models",
        "torchvision.ops",
        "torchvision.transforms.v2",
    }
