"""OpenOOD v1.5 in full: its configs run on miniatures, and a run fills the leaderboard's form."""

import math
from pathlib import Path

import pytest
import torch
from helpers import layouts
from helpers.report_runs import read_csv
from helpers.results import scores_of

from diffguard_pl.classifiers.resnets import ResNet18_224x224
from diffguard_pl.commands import report
from diffguard_pl.commands.evaluate import main
from diffguard_pl.datamodules.openood import SHIFTED

CHECKPOINT = "results/imagenet200_resnet18_224x224_base_e90_lr0.1_default/s0/best.ckpt"
OOD = {"near": ["ssb_hard", "ninco"], "far": ["inaturalist", "textures", "openimage_o"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return layouts.imagenet(tmp_path_factory.mktemp("data"), 2)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """OpenOOD's classifier of ImageNet-200 with random weights, in the folder of its archive."""
    folder = tmp_path_factory.mktemp("openood")
    path = folder / CHECKPOINT
    path.parent.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(ResNet18_224x224().state_dict(), path)
    return folder / "results"


@pytest.fixture
def run(data, results, tmp_path, monkeypatch):
    """Run a config scaled down, without DISTS; returns the folder of the run."""
    monkeypatch.chdir(tmp_path)
    Path("results").symlink_to(results)

    def command(name: str, *args: str) -> Path:
        small = "small/gdm" if name.endswith("gdm") else "small/ldm"
        cheap = [
            "--model.discrepancies",
            "[l2]",
            "--model.early_stop",
            "null",
            "--model.steps",
            "3",
        ]
        files = ["--config", f"openood/{name}", "--config", small, "--data.root", str(data)]
        batches = ["--data.batch_size", "1", "--trainer.limit_test_batches", "2"]
        argv = ["test", *files, *cheap, *batches, "--pictures.count", "0", *args]
        monkeypatch.setattr("sys.argv", argv)
        main()
        (scores,) = tmp_path.glob("runs/**/scores")
        return scores.parent

    return command


@pytest.mark.parametrize(
    "name",
    [
        "imagenet_ldm",
        pytest.param("imagenet_gdm", marks=pytest.mark.slow),
        pytest.param("imagenet200_gdm", marks=pytest.mark.slow),
    ],
)
def test_a_config_runs_two_batches_of_each_kind_of_dataset(name, run):
    only = ["--data.only", "[imagenet_r, ninco]"]
    if name.startswith("imagenet_"):
        only += ["--model.classifier.weights", "random"]
    if name.endswith("gdm"):
        only += ["--model.guidance.cutouts", "0"]
    folder = run(name, *only)
    rows = scores_of(folder)
    datasets = [name.partition("_")[0], "imagenet_r", "ninco"]
    assert [row["dataset"] for row in rows] == [dataset for dataset in datasets for _ in range(2)]
    assert [row["label"] for row in rows] == [0, 1, 0, 1, -1, -1]
    assert all(math.isfinite(row["l2"]) and row["error"] is None for row in rows)
    groups = {row["group"] for row in read_csv(folder / "metrics.csv")}
    assert groups == {"near", "fsood_near"}


def test_a_run_on_every_dataset_of_imagenet200_fills_the_leaderboard_s_form(run):
    folder = run("imagenet200_ldm")
    rows = scores_of(folder)
    shifted = SHIFTED["imagenet200"]
    datasets = ["imagenet200", *shifted, *OOD["near"], *OOD["far"]]
    assert list(dict.fromkeys(row["dataset"] for row in rows)) == datasets
    assert len(rows) == 2 * len(datasets)
    assert max(row["reconstructed_as"] for row in rows) < 200
    has_classes = {row["dataset"] for row in rows if row["label"] >= 0}
    assert has_classes == {"imagenet200", *shifted}

    with pytest.warns(UserWarning, match="limit_test_batches"):
        report.main([str(folder), "--leaderboard", "openood"])
    for task in ("ood", "fsood"):
        (entry,) = read_csv(folder / "openood" / f"imagenet200_{task}.csv")
        assert (entry["Postprocessor"], entry["Arch"]) == ("DiffGuard", "ResNet18")
        assert entry["Additional_Description"].startswith("90 epochs; ")
        lines = [row[""] for row in read_csv(folder / "openood" / task / "l2.csv")]
        assert lines == [*OOD["near"], "nearood", *OOD["far"], "farood"]
