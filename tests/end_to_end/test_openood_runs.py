"""OpenOOD v1.5 in full: each config runs on miniatures of its datasets, and fills the leaderboard's
form."""

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
CONFIGS = ["imagenet_gdm", "imagenet_ldm", "imagenet200_gdm", "imagenet200_ldm"]
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


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_runs_on_every_dataset_and_fills_the_leaderboard_s_form(
    name, data, results, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("results").symlink_to(results)
    small = "small/gdm" if name.endswith("gdm") else "small/ldm"
    # The classifier of ImageNet-1k, DISTS and its early stop are those of gdm and ldm.
    weights = ["--model.classifier.weights", "random"] if name.startswith("imagenet_") else []
    cheap = ["--model.discrepancies", "[l2]", "--model.early_stop", "null", "--model.steps", "3"]
    args = ["--config", f"openood/{name}", "--config", small, "--data.root", str(data)]
    batches = ["--data.batch_size", "1", "--trainer.limit_test_batches", "2"]
    monkeypatch.setattr("sys.argv", ["test", *args, *weights, *cheap, *batches])
    main()

    ind = name.partition("_")[0]
    (scores,) = tmp_path.glob("runs/**/scores")
    rows = scores_of(scores.parent)
    datasets = [ind, *SHIFTED[ind], *OOD["near"], *OOD["far"]]
    assert [row["dataset"] for row in rows] == [dataset for dataset in datasets for _ in range(2)]
    assert all(row["error"] is None for row in rows)
    classes = 200 if ind == "imagenet200" else 1000
    assert max(row["reconstructed_as"] for row in rows) < classes
    has_classes = [ind, *SHIFTED[ind]]
    labels = [row["label"] for row in rows]
    assert labels == [label for dataset in datasets for label in _labels(dataset in has_classes)]
    groups = {row["group"] for row in read_csv(scores.parent / "metrics.csv")}
    assert groups == {"near", "far", "fsood_near", "fsood_far"}

    with pytest.warns(UserWarning, match="limit_test_batches"):
        report.main([str(scores.parent), "--leaderboard", "openood"])
    benchmark = "imagenet200" if ind == "imagenet200" else "imagenet1k"
    for task in ("ood", "fsood"):
        (entry,) = read_csv(scores.parent / "openood" / f"{benchmark}_{task}.csv")
        arch, training = ("ResNet18", "90 epochs") if classes == 200 else ("ResNet50", "l2")
        assert (entry["Postprocessor"], entry["Arch"]) == ("DiffGuard", arch)
        assert training in entry["Additional_Description"]


def _labels(has_classes: bool) -> list[int]:
    return [0, 1] if has_classes else [-1, -1]
