"""The scripts in examples/ run as they are, with few images and little training."""

import os
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers import ROOT, preloaded

from diffguard_pl import InputError
from diffguard_pl.deploy.detector import Detector
from diffguard_pl.runs.store import read_scores

EXAMPLES = ROOT / "examples"


def run(name: str, out: Path, **settings: str) -> str:
    environment = os.environ | {"OUT": str(out), "COLUMNS": "120", "NO_COLOR": "1"} | settings
    done = preloaded.run([str(EXAMPLES / name)], cwd=out, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_guard_my_classifier_accepts_known_digits(tmp_path):
    pytest.importorskip("timm")
    printed = run("guard_my_classifier.py", tmp_path, STEPS="60", LIMIT="40")
    lines = re.findall(r"^([\w ]+): ([\d.]+) % of 40 accepted$", printed, re.MULTILINE)
    accepted = {name: float(percent) for name, percent in lines}
    assert list(accepted) == ["known digits", "4 and 9", "photos"]
    assert accepted["known digits"] >= 85
    assert accepted["known digits"] > accepted["4 and 9"]
    assert len(re.findall(r"^by \w+ alone: ", printed, re.MULTILINE)) == 5
    assert len(re.findall(r"^a 4 or 9 is .* \d \(p=[01]\.\d{3}\)$", printed, re.MULTILINE)) == 4
    with pytest.raises(InputError, match="was not made from a config; give the model"):
        Detector.load(tmp_path / "detector.json")


@pytest.mark.slow
def test_add_discrepancy_compares_three(tmp_path):
    printed = run("add_discrepancy.py", tmp_path, LIMIT="40")
    (table,) = tmp_path.glob("runs/overlap/*/metrics.csv")
    auroc = pd.read_csv(table).set_index("score")["auroc"]
    assert list(auroc.index[:3]) == ["maps", "overlap", "BlurredOverlap"]
    assert auroc.min() > 0.8
    assert f"the best on the tuning split: {auroc[:3].idxmax()}" in printed
    saved = yaml.safe_load((table.parent / "config.yaml").read_text())
    assert saved["model"]["discrepancies"][1] == "my_discrepancies.overlap"
    scores, _ = read_scores(table.parent)
    assert scores["overlap"].between(0, 1).all()


def test_add_ood_dataset_tests_on_the_drawn_images(tmp_path):
    printed = run("add_ood_dataset.py", tmp_path, LIMIT="12")
    (table,) = tmp_path.glob("runs/my_datasets/*/metrics.csv")
    auroc = pd.read_csv(table).set_index(["dataset", "score"])["auroc"]
    assert auroc["scribbles", "maps"] > 0.9
    assert auroc["ramps", "maps"] > 0.9
    assert "12 images" in printed
    scores, header = read_scores(table.parent)
    assert header.datasets == ["digits", "scribbles", "ramps"]
    assert scores["error"].isna().all()
    assert len(scores) == 36
