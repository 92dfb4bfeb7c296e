"""Runs that differ in one or two settings make curves of their average AUROC."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.report_runs import RECORD, change_record, make_run
from PIL import Image
from rich.console import Console

from diffguard_pl import InputError
from diffguard_pl.commands import report
from diffguard_pl.report.results import RunResults, read_results
from diffguard_pl.report.setting_curve import curve_table, setting_curve
from diffguard_pl.report.style import COLOURS

CUT, STEPS = "model.guidance.cam_cut", "model.steps"


def run(folder: Path, cut: float | None, steps: int, **settings) -> Path:
    """Write a run whose primary score is the better, the higher the cut."""
    make_run(folder, better=3 * (cut or 0), pictures=0)
    guidance = {
        "class_path": "ClassifierFreeGuidance",
        "init_args": {"cam_cut": cut, "scale": 10.0},
    }
    model = {"steps": steps, "slots": steps, "guidance": guidance} | settings
    (folder / "run.json").write_text(json.dumps(RECORD | {"config": {"model": model}}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    place = tmp_path_factory.mktemp("sweep")
    pairs = [(0.5, 25), (0.0, 50), (0.0, 25), (0.5, 50)]
    return [run(place / f"{cut}_{steps}", cut, steps) for cut, steps in pairs]


@pytest.fixture(scope="module")
def runs(folders) -> list[RunResults]:
    return [read_results(folder) for folder in folders]


def test_points_are_in_the_order_of_the_curves_with_the_average_of_all_datasets(runs):
    points = setting_curve(runs, [CUT, STEPS])
    assert [tuple(point.settings.values()) for point in points] == [
        (0.0, 25), (0.5, 25), (0.0, 50), (0.5, 50),
    ]  # fmt: skip
    for point in points:
        *datasets, average = point.results
        aurocs = [result.metrics.auroc for result in datasets]
        assert [result.dataset for result in datasets] == ["letters", "maps <b>&", "photos"]
        assert average.metrics.auroc == pytest.approx(np.mean(aurocs))
        low, high = average.intervals["auroc"]
        assert low < average.metrics.auroc < high
        # results on each dataset are those of the run's own report
        own = [r for r in point.run.results if r.score == "dists" and r.dataset == "photos"]
        assert datasets[2].metrics == own[0].metrics
        assert datasets[2].intervals == own[0].intervals
    assert points[1].average.metrics.auroc > points[0].average.metrics.auroc


def test_the_table_ends_with_the_average(runs):
    console = Console(width=150)
    with console.capture() as printed:
        console.print(curve_table(setting_curve(runs, [CUT, STEPS])))
    average = setting_curve(runs, [CUT, STEPS])[0].average
    rows = [re.split(r"\s*│\s*", line) for line in printed.get().splitlines()]
    (first,) = [row for row in rows if row[1:3] == ["0", "25"]]
    low, high = average.intervals["auroc"]
    expected = f"{100 * average.metrics.auroc:.2f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert first[-2] == expected


def test_the_command_writes_table_and_picture(folders, tmp_path, capsys):
    picture = tmp_path / "curve.png"
    options = ["--against", CUT, "--against", STEPS, "--out", str(picture)]
    report.main([*map(str, folders), *options])
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert len(rows) == 4 * 4
    assert [row["dataset"] for row in rows[:4]] == ["letters", "maps <b>&", "photos", "average"]
    assert rows[3][CUT] == "0.0"
    assert float(rows[3]["auroc_low"]) < float(rows[3]["auroc"]) < float(rows[3]["auroc_high"])
    assert Path(rows[3]["folder"]) == folders[2].resolve()
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    drawn = {tuple(colour) for colour in np.unique(pixels, axis=0)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:2]} <= drawn
    assert str(picture) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([CUT], r"model.steps, too"),
        ([CUT, "model.step"], r"model.steps, too"),
        ([CUT, STEPS, "model.guidance.class_path"], r"class_path is ClassifierFree.*number"),
        ([CUT, STEPS, "model.nothing"], r"model.nothing is unknown; .*number"),
    ],
)
def test_other_differences_and_settings_that_are_no_numbers_are_refused(runs, settings, message):
    with pytest.raises(InputError, match=message):
        setting_curve(runs, settings)


def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path):
    same = read_results(run(tmp_path / "same", 0.5, 25))
    with pytest.raises(InputError, match=r"same .*cam_cut and .*steps"):
        setting_curve([*runs, same], [CUT, STEPS])
    without = read_results(run(tmp_path / "without", None, 25))
    with pytest.raises(InputError, match=r"without: .*cam_cut is None; .*number"):
        setting_curve([runs[0], without], [CUT])
    other = read_results(make_run(tmp_path / "other", primary_score="maps", pictures=0))
    with pytest.raises(InputError, match=r"other: .*primary score"):
        setting_curve([runs[0], other], [CUT])
    (tmp_path / "same" / "run.json").unlink()
    with pytest.raises(InputError, match=r"same: .*run.json"):
        setting_curve([read_results(tmp_path / "same")], [CUT])


def test_a_curve_is_a_png(folders, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        report.main([str(folders[0]), "--against", STEPS, "--out", str(tmp_path / "c.html")])
    assert "c.html: must end in .png" in str(ended.value)


def test_covariate_shifted_datasets_are_not_in_the_average(tmp_path):
    runs = []
    for steps in (25, 50):
        folder = make_run(tmp_path / str(steps), datasets=["digits", "csid", "letters", "photos"])
        change_record(folder, config={"model": {"steps": steps}})
        runs.append(read_results(folder))
    for point in setting_curve(runs, [STEPS]):
        assert [result.dataset for result in point.results] == ["letters", "photos", "average"]
