"""Cascades at other budgets."""

import dataclasses

import pytest
from helpers.report_runs import make_run, read_csv
from PIL import Image

from diffguard_pl.commands.report import main
from diffguard_pl.report.cascade_curve import BUDGETS, cascade_curve
from diffguard_pl.report.results import read_results
from diffguard_pl.runs.store import read_scores
from diffguard_pl.scores.combination import Cascade, Combination, Fusion

DATASETS = ["digits", "calibration", "letters", "maps <b>&", "photos"]


@pytest.fixture(scope="module")
def cascade_run(tmp_path_factory):
    """A run whose cascade decides by MSP, and by the fusion of both scores if MSP is not sure."""
    fusion, cascade = Fusion(["dists", "msp"]), Cascade("msp", 0.25, "fusion")
    combination = Combination.checked(fusion, cascade, ["dists"], ["msp"])
    folder = tmp_path_factory.mktemp("combined") / "now"
    return make_run(folder, datasets=DATASETS, better=1.0, combination=combination)


def results_of(run, score: str) -> dict:
    return {(r.group, r.dataset): r.metrics for r in run.results if r.score == score}


def test_a_curve_leads_from_the_baseline_through_the_run_to_the_other_score(cascade_run):
    run = read_results(cascade_run)
    points = {point.budget: point for point in run.cascade_curve}
    assert list(points) == sorted({*BUDGETS, 0.25})
    # A cascade ranks images by the ranks of its scores, which leaves AUROC and FPR@95 as they are.
    for budget, score in ((0.0, "msp"), (0.25, "cascade"), (1.0, "fusion")):
        expected = results_of(run, score)
        for result in points[budget].results:
            metrics = expected[result.group, result.dataset]
            assert result.metrics == pytest.approx(metrics, abs=1e-12), (budget, result.dataset)


def test_fractions_grow_with_the_budget_and_are_by_dataset(cascade_run):
    points = read_results(cascade_run).cascade_curve
    diffused = [point.diffused for point in points]
    assert (diffused[0], diffused[-1]) == (0, 1)
    assert diffused == sorted(diffused)
    middle = next(point for point in points if point.budget == 0.5)
    counts = {"digits": 60, "letters": 60, "maps <b>&": 60, "photos": 59}
    assert list(middle.diffused_by_dataset) == list(counts)
    total = sum(middle.diffused_by_dataset[name] * count for name, count in counts.items())
    assert total / sum(counts.values()) == pytest.approx(middle.diffused)
    assert middle.diffused_ind == middle.diffused_by_dataset["digits"]


def test_nfe_weigh_images_by_their_network_evaluations(cascade_run):
    frame, header = read_scores(cascade_run)
    unknown = cascade_curve(frame, header)
    assert [point.nfe for point in unknown] == pytest.approx([p.diffused for p in unknown])

    frame["nfe"] = [10 if name == "photos" else 1 for name in frame["dataset"]]
    for point in cascade_curve(frame, header):
        photos = 59 * point.diffused_by_dataset["photos"]
        others = 239 * point.diffused - photos
        assert point.nfe == pytest.approx((10 * photos + others) / (10 * 59 + 180))


def test_a_run_without_a_cascade_or_with_skipped_images_has_no_curve(cascade_run):
    frame, header = read_scores(cascade_run)
    settings = header.combination
    skipped = settings | {"cascade": settings["cascade"] | {"skip": True}}
    for combination in (None, settings | {"cascade": None}, skipped):
        changed = dataclasses.replace(header, combination=combination)
        assert cascade_curve(frame, changed) == []


def test_a_report_has_the_curve_as_table_csv_and_png(cascade_run, capsys):
    main([str(cascade_run)])
    printed = capsys.readouterr().out
    assert "Cascade" in printed
    assert "0.25" in printed
    lines = read_csv(cascade_run / "cascade.csv")
    photos = [line for line in lines if line["dataset"] == "photos"]
    assert [float(line["budget"]) for line in photos] == sorted({*BUDGETS, 0.25})
    assert (photos[0]["diffused"], photos[-1]["diffused_ind"]) == ("0.0", "1.0")
    scores = {line["score"] for line in read_csv(cascade_run / "metrics.csv")}
    assert scores == {"dists", "fusion", "cascade", "msp"}
    assert Image.open(cascade_run / "cascade.png").width > 1000
