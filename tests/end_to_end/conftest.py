"""Small data and weights for runs of the shipped experiments."""

from pathlib import Path

import pytest
import torch
from helpers import layouts
from helpers.perceptual import save_perceptual_weights
from helpers.results import scores_of
from torchvision.models import ResNet50_Weights, resnet50

from diffguard_pl.commands.evaluate import main


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = layouts.cifar(layouts.imagenet(tmp_path_factory.mktemp("data"), 4), 4)
    # Images to calibrate on, and others to fit baselines to.
    lists = root / "benchmark_imglist" / "imagenet"
    lines = (lists / "val_imagenet.txt").read_text().splitlines(keepends=True)
    (lists / "calibrated.txt").write_text("".join(lines[:2]))
    (lists / "fitted.txt").write_text("".join(lines[2:]))
    return root


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory) -> Path:
    """Provide what torchvision and piq would download, with random weights."""
    folder = save_perceptual_weights(tmp_path_factory.mktemp("torch"))
    file = ResNet50_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(resnet50().state_dict(), folder / "hub" / "checkpoints" / file)
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, torch_home, data):
    """Run the command; returns the results."""
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    monkeypatch.chdir(tmp_path)

    def command(*args: str) -> list[dict]:
        root = [] if "digits_gdm" in args else ["--data.root", str(data)]
        monkeypatch.setattr(
            "sys.argv", ["diffguard-test", *args, *root, "--trainer.limit_test_batches", "2"]
        )
        main()
        (scores,) = tmp_path.glob("runs/**/scores")
        return scores_of(scores.parent)

    return command
