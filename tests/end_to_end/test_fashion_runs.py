"""Runs of the Fashion-MNIST benchmark with its shipped weights."""

import pandas as pd
import pytest

from diffguard_pl.commands.evaluate import main
from diffguard_pl.runs.store import read_scores

DATASETS = ["fashion", "shirt", "ankle_boot", "mnist", "photos", "letters"]
QUICK = ["--data.limit", "32", "--pictures.count", "0", "--page.enabled", "false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a config; returns the scores and the AUROC by dataset and score."""

    def command(config, *settings):
        folder = tmp_path_factory.mktemp("run")
        main(["--config", config, *QUICK, *settings, "--trainer.default_root_dir", str(folder)])
        table = pd.read_csv(folder / "metrics.csv")
        # Near and far have a mean each: names that are there once.
        names = table["dataset"].where(table["dataset"] != "mean", table["group"] + " mean")
        return read_scores(folder)[0], table.set_index([names, "score"])["auroc"]

    return command


@pytest.mark.parametrize(
    ("config", "nfe"),
    [pytest.param("fashion_ldm", 30, marks=pytest.mark.slow), ("fast/fashion_ldm", 7)],
)
def test_strange_images_are_detected_at_the_stated_cost(run, config, nfe):
    scores, auroc = run(config)
    assert list(scores["dataset"].unique()) == DATASETS
    assert (scores["prediction"] == scores["label"])[scores["dataset"] == "fashion"].mean() > 0.9
    assert (scores["nfe"] == nfe).all()
    # chance is 0.5, and the standard error of 32 against 32 images about 0.05
    assert auroc["photos", "maps"] > 0.9
    assert auroc["mnist", "latents"] > 0.9
    assert auroc["ankle_boot", "msp"] > 0.65


def test_the_pixel_model_runs_with_its_shipped_weights(run):
    scores, auroc = run("fashion_gdm", "--data.limit", "8")
    assert list(scores["dataset"].unique()) == DATASETS
    assert scores["nfe"].between(8, 30).all()
    assert auroc.between(0, 1).all()


def test_scores_are_combined(run):
    # baselines that need no training images, which are not in the package
    scores, auroc = run(
        "combine/fashion_ldm",
        *("--config", "fast/fashion_ldm"),
        *("--model.baselines", "[msp, energy]"),
        *("--model.fusion.scores", "[gmsd, msp]"),
        *("--model.cascade.baseline", "msp"),
    )
    assert list(scores["dataset"].unique()) == [DATASETS[0], "calibration", *DATASETS[1:]]
    assert auroc["photos", "fusion"] > auroc["photos", "msp"]
    assert auroc["photos", "cascade"] > auroc["photos", "msp"]
