"""Results in the forms of OpenOOD's evaluator and leaderboard."""

import csv
import json

import numpy as np
import pytest
from helpers.report_runs import change_record, make_plain_run, read_csv
from helpers.results import sklearn_metrics

from diffguard_pl import InputError
from diffguard_pl.commands import report
from diffguard_pl.report.leaderboard import write_openood
from diffguard_pl.report.results import read_results
from diffguard_pl.runs.store import read_scores

GROUPS = {"shifted": "csid", "a": "near", "b": "far", "c": "far"}
CLASSIFIER = {
    "model": {"class_path": "diffguard_pl.classifiers.resnets.ResNet18_224x224"},
    "checkpoint": "results/imagenet200_resnet18_224x224_base_e90_lr0.1_default/s0/best.ckpt",
}
BACKBONE = {"init_args": {"checkpoint": "ldm-cin256"}}
CONFIG = {"model": {"classifier": {"init_args": CLASSIFIER}, "backbone": BACKBONE}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with a covariate-shifted dataset, and the files for OpenOOD."""
    folder = make_plain_run(tmp_path_factory.mktemp("run"), GROUPS, scores=("dists", "msp"))
    change_record(folder, config=CONFIG)
    report.main([str(folder), "--leaderboard", "openood"])
    return folder


@pytest.mark.parametrize(("task", "ind"), [("ood", ["ind"]), ("fsood", ["ind", "shifted"])])
def test_the_evaluator_s_table_has_openood_s_metrics_in_percent(folder, task, ind):
    frame, _ = read_scores(folder)
    in_distribution = frame[frame["dataset"].isin(ind)]
    accuracy = 100 * (in_distribution["label"] == in_distribution["prediction"]).mean()
    with (folder / "openood" / task / "msp.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["", "FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
    assert [line[0] for line in lines] == ["a", "nearood", "b", "c", "farood"]
    table = {line[0]: [float(value) for value in line[1:]] for line in lines}
    for name in "abc":
        ood = frame[frame["dataset"] == name]["msp"].to_numpy()
        auroc, _, aupr_in, aupr_out, fpr = sklearn_metrics(in_distribution["msp"].to_numpy(), ood)
        metrics = [100 * value for value in (fpr, auroc, aupr_in, aupr_out)]
        assert table[name] == pytest.approx([*metrics, accuracy], abs=0.0051)
    assert table["nearood"] == table["a"]
    mean = np.mean([table["b"], table["c"]], axis=0)
    assert table["farood"] == pytest.approx(mean, abs=0.011)


def test_the_leaderboard_s_line_has_its_columns(folder):
    (line,) = read_csv(folder / "openood" / "ind_fsood.csv")
    table = read_csv(folder / "openood" / "fsood" / "dists.csv")
    means = {entry[""]: entry for entry in table}
    assert line == {
        "Training": "CrossEntropy",
        "Postprocessor": "DiffGuard",
        "Near-OOD_AUROC": means["nearood"]["AUROC"],
        "Far-OOD_AUROC": means["farood"]["AUROC"],
        "ID_Accuracy": means["farood"]["ACC"],
        "Outlier_Data": "No",
        "Arch": "ResNet18",
        "Additional_Description": "90 epochs; diffusion model ldm-cin256; dists",
    }
    (entry,) = json.loads((folder / "openood" / "ind_fsood.json").read_text())
    assert entry == line | {
        "ID_Accuracy_Mean": line["ID_Accuracy"],
        "Near-OOD_AUROC_Mean": line["Near-OOD_AUROC"],
        "Far-OOD_AUROC_Mean": line["Far-OOD_AUROC"],
    }


def test_several_trainings_become_mean_and_deviation(folder, tmp_path):
    other = make_plain_run(tmp_path / "s1", GROUPS, scores=("dists", "msp"), count=20)
    runs = [read_results(folder), read_results(other)]
    (standard, _) = write_openood(runs, tmp_path / "openood")
    (line,) = read_csv(standard)
    values = [
        100 * row.metrics.auroc
        for run in runs
        for row in run.results
        if row[:3] == ("near", "a", "dists")
    ]
    expected = f"{np.mean(values):.2f} ± {np.std(values):.2f}"
    assert line["Near-OOD_AUROC"] == expected
    (entry,) = json.loads(standard.with_suffix(".json").read_text())
    assert entry["Near-OOD_AUROC_Mean"] == f"{np.mean(values):.2f}"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": "near"}, r"has no datasets in the group far.*data\.benchmark"),
        ({"a": "near", "b": "other"}, r"group far"),
    ],
)
def test_a_run_without_the_groups_is_refused(groups, message, tmp_path):
    run = read_results(make_plain_run(tmp_path / "run", groups))
    with pytest.raises(InputError, match=message):
        write_openood([run], tmp_path)


def test_runs_of_other_scores_and_unfinished_ones_are_refused(folder, tmp_path):
    other = make_plain_run(tmp_path / "other", GROUPS, scores=("lpips", "msp"))
    with pytest.raises(InputError, match=r"other: .*datasets or scores.*one config"):
        write_openood([read_results(folder), read_results(other)], tmp_path)
    change_record(other, sessions=[{"began": "2026-11-23T20:30:00+00:00"}])
    with pytest.raises(InputError, match=r"unfinished.*--resume"):
        write_openood([read_results(other)], tmp_path)


def test_a_part_of_the_images_is_warned_of(tmp_path):
    folder = make_plain_run(tmp_path / "run", {"a": "near", "b": "far"})
    change_record(folder, config={"data": {"init_args": {"limit": 10}}})
    with pytest.warns(UserWarning, match=r"data\.limit.*all of them"):
        write_openood([read_results(folder)], tmp_path)


def test_a_leaderboard_of_a_curve_is_refused(folder):
    args = [str(folder), "--against", "model.steps", "--leaderboard", "openood"]
    with pytest.raises(SystemExit, match=r"--leaderboard: .*--against"):
        report.main(args)
