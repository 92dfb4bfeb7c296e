"""The command ``diffguard-pl analyze``, apart from what it measures."""

import csv
import inspect
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from diffguard_pl.commands import analyze, analyze_sweep, evaluate
from diffguard_pl.commands.errors import LEFT_OUT
from diffguard_pl.evaluation.inversion import InversionAnalysis
from diffguard_pl.evaluation.label_effect import LabelAnalysis
from diffguard_pl.evaluation.noise_accuracy import Analysis

QUICK = ["--model.steps", "3", "--data.limit", "2"]


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [([], Analysis), (["inversion"], InversionAnalysis), (["labels"], LabelAnalysis)],
)
def test_help_lists_the_settings_of_the_analysis_with_their_defaults(name, kind, option, capsys):
    analyze.main([*name, "--config", "digits_ldm", option])
    printed = capsys.readouterr().out

    settings = inspect.signature(kind).parameters
    assert re.findall(r"--analysis\.(\w+) \w+", printed) == list(settings)
    for name, setting in settings.items():
        _, _, described = printed.partition(f"--analysis.{name} ")
        described, _, _ = described.partition("\n  --")
        found = re.search(r"\(default: (.+)\)", described)
        default = setting.default
        if isinstance(default, tuple):
            default = f"[{', '.join(default)}]"
        assert (found[1] if found else "None") == str(default)


def test_help_names_the_analyses_of_other_figures(capsys):
    analyze.main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in analyze.FIGURES)


def test_an_unknown_analysis_ends_in_one_line(monkeypatch):
    with pytest.raises(SystemExit) as ended:
        analyze.main(["inverson", "--config", "digits_gdm"])
    assert "unknown analysis 'inverson'; choose from: inversion" in str(ended.value)


def test_similarity_along_the_inversion_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = ["--analysis.similarities", "[psnr, ssim]", "--model.early_stop_steps", "1"]
    analyze.main(["inversion", "--config", "digits_gdm", *QUICK, *settings])
    (folder,) = tmp_path.glob("runs/analyze/inversion/digits_gdm/*")
    rows = list(csv.DictReader((folder / "inversion.csv").open()))
    datasets = ["digits", "digits_4_9", "photos", "letters"]
    assert [(row["dataset"], row["step"]) for row in rows] == [
        (dataset, step) for dataset in datasets for step in "01"
    ]
    assert all(47 < float(row["psnr_mean"]) < 80 for row in rows)
    assert Image.open(folder / "inversion.png").width > 1000
    assert "digits_4_9" in capsys.readouterr().out
    assert "early_stop" in (folder / "config.yaml").read_text()


def test_true_and_false_labels_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    analyze.main(["labels", "--config", "digits_gdm", *QUICK, "--analysis.pictures", "1"])
    (folder,) = tmp_path.glob("runs/analyze/labels/digits_gdm/*")
    rows = list(csv.DictReader((folder / "labels.csv").open()))
    of_primary = [row for row in rows if row["score"] == "kl"]
    assert [row["guidance"] for row in of_primary] == ["complete", "no x0hat"]
    assert all(row["images"] == "2" for row in rows)
    # in-distribution images come back more alike under their true labels
    assert float(of_primary[0]["true_mean"]) > float(of_primary[0]["false_mean"])
    # input, without guidance, complete and without x0hat, under two labels
    picture = Image.open(folder / "labels.png")
    assert picture.width > 170 + 4 * 128
    assert picture.height > 2 * 128
    assert "no x0hat" in capsys.readouterr().out


def in_this_process(args: Sequence[str], stop: object) -> int:
    """Run a test of a sweep without a new process."""
    evaluate.main(list(args))
    return 0


def test_a_sweep_runs_a_test_for_each_value_and_goes_on_where_it_stopped(
    tmp_path, monkeypatch, capsys
):
    ran: list[str] = []

    def until_the_second(args: Sequence[str], stop: object) -> int:
        ran.append(Path(args[-1]).name)
        return 1 if len(ran) == 2 else in_this_process(args, stop)

    monkeypatch.setattr(analyze_sweep, "run_test", until_the_second)
    fast = ["--config", "digits_ldm", "--data.limit", "2", "--model.discrepancies", "[l2]"]
    fast += ["--page.enabled", "false", "--model.baselines", "[]"]
    command = ["sweep", *fast, "--vary", "model.steps=2,3", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        analyze.main(command)
    assert ended.value.code == 1
    assert f"--out {tmp_path}" in capsys.readouterr().err

    with pytest.raises(SystemExit) as ended:
        analyze.main(command)
    assert ended.value.code == 0
    assert ran == ["steps=2", "steps=3", "steps=3"]
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    averages = [row for row in rows if row["dataset"] == "average"]
    assert [row["model.steps"] for row in averages] == ["2", "3"]
    assert all(row["score"] == "l2" and 0 <= float(row["auroc"]) <= 1 for row in averages)
    assert Image.open(tmp_path / "sweep.png").width > 600
    assert "AUROC of l2" in capsys.readouterr().out


def test_the_last_setting_of_a_sweep_is_the_outer_loop_and_left_out_images_end_nothing(
    tmp_path, monkeypatch
):
    ran: list[list[str]] = []

    def note(args: Sequence[str], stop: object) -> int:
        ran.append(list(args))
        return LEFT_OUT

    monkeypatch.setattr(analyze_sweep, "run_test", note)
    monkeypatch.setattr(analyze_sweep, "report_curve", lambda *_: None)
    vary = ["--vary", "model.guidance.cam_cut=0,0.2", "--vary", "model.steps=25,50"]
    with pytest.raises(SystemExit) as ended:
        analyze_sweep.main(["--config", "ldm", *vary, "--out", str(tmp_path)])
    assert ended.value.code == LEFT_OUT
    assert [args[:2] for args in ran] == [["--config", "ldm"]] * 4
    place = "--trainer.default_root_dir"
    assert [args[2:] for args in ran] == [
        [f"--model.guidance.cam_cut={cut}", f"--model.steps={steps}", place, str(tmp_path / name)]
        for steps in ("25", "50")
        for cut in ("0", "0.2")
        for name in [f"cam_cut={cut},steps={steps}"]
    ]


def test_a_run_of_a_sweep_that_has_begun_is_resumed(tmp_path):
    settings = {"model.steps": "5"}
    begun = tmp_path / analyze_sweep.run_name(settings)
    begun.mkdir()
    (begun / "config.yaml").touch()
    arguments = analyze_sweep.arguments_of(begun, settings, ["--config", "ldm"])
    assert arguments == ["--config", "ldm", "--model.steps=5", "--resume", str(begun)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--vary", "model.steps"], "--vary model.steps: must be"),
        (["--vary", "model.steps=5,five"], "--vary model.steps=5,five: must be"),
        (["--vary", "model.steps=5,5.0"], "different numbers"),
        (["--vary", "model.steps=5", "--vary", "model.steps=9"], "different settings"),
        (["--vary", "a=1", "--vary", "b=2", "--vary", "c=3"], "once or twice"),
        (["--vary", "a=1", "--resume", "folder"], "--resume: cannot be used"),
        (["--vary", "a=1", "--trainer.default_root_dir=folder"], "--out chooses"),
    ],
)
def test_mistakes_in_a_sweep_end_in_one_line(args, message):
    with pytest.raises(SystemExit) as ended:
        analyze_sweep.main(args)
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)


def test_signals_reach_the_test_of_a_sweep(monkeypatch):
    class Stop:
        deferred = False

        def forward_signal(self, signum: int) -> None:
            raise AssertionError("not set")

    class Process:
        def __init__(self, command: list[str]):
            assert command[:3] == [sys.executable, "-m", "diffguard_pl.test"]
            self.received: list[int] = []
            processes.append(self)

        def send_signal(self, signum: int) -> None:
            self.received.append(signum)

        def wait(self) -> int:
            assert stop.deferred  # the test ends by itself
            stop.forward_signal(signal.SIGTERM)
            return 143

    stop, processes = Stop(), []
    monkeypatch.setattr(analyze_sweep.subprocess, "Popen", Process)
    assert analyze_sweep.run_test(["--config", "ldm"], stop) == 143
    assert processes[0].received == [signal.SIGTERM]
    assert not stop.deferred


def test_the_points_are_those_of_the_original_s_scripts():
    assert Analysis().step_indices(100) == [0, *range(9, 100, 10)]
    assert Analysis(every=1000).step_indices(100) == [0]  # clean images alone
