"""Costs of the scores of a run, and which of them are on the front."""

import csv

import pytest
from helpers.report_runs import change_record, change_scores, make_plain_run
from PIL import Image

from diffguard_pl.commands.report import main
from diffguard_pl.report.results import read_results

COSTS = {
    "dists": {"family": "discrepancy", "nfe": None, "fitted": False},
    "label_pull": {"family": "path score", "nfe": 3, "fitted": False},
    "gepc": {"family": "path score", "nfe": 8, "fitted": True},
    "msp": {"family": "baseline", "nfe": 0, "fitted": False},
}
GROUPS = {"letters": "near", "digits_4": "near", "photos": "far"}
# Each score tells the images of a dataset apart up to a number of them, of 10.
RIGHT = {
    "dists": {"letters": 9, "digits_4": 9, "photos": 10},
    "label_pull": {"letters": 7, "digits_4": 7, "photos": 10},
    "gepc": {"letters": 6, "digits_4": 7, "photos": 9},
    "msp": {"letters": 5, "digits_4": 5, "photos": 5},
}


@pytest.fixture
def run(tmp_path):
    folder = make_plain_run(tmp_path / "now", GROUPS, count=10, scores=tuple(COSTS))

    def change(frame):
        frame["nfe"] = 13
        for score, right in RIGHT.items():
            for dataset in ("ind", *GROUPS):
                # In-distribution images have 0, others -1 where the score is right, else 1.
                rows = frame["dataset"] == dataset
                values = [-1.0 if i < right.get(dataset, 0) else 1.0 for i in range(10)]
                frame.loc[rows, score] = [0.0] * 10 if dataset == "ind" else values
        return frame

    change_scores(folder, change)
    throughput = {"nfe": 200, "images": 40, "stages": {"diffuse": 10.0, "classify": 4.0}}
    change_record(
        folder,
        score_costs=COSTS,
        nfe_of_path_scores=1,
        sessions=[{"began": "now", "throughput": throughput}],
    )
    return folder


def test_costs_are_those_of_a_score_alone(run):
    costs = {cost.score: cost for cost in read_results(run).costs}
    assert list(costs) == ["msp", "label_pull", "gepc", "dists"]
    # Of the 13 evaluations of an image, path scores alone need one.
    assert [cost.nfe for cost in costs.values()] == [0, 3, 8, 12]
    # 0.1 s for a classification and 0.05 s for an evaluation.
    seconds = [cost.seconds for cost in costs.values()]
    assert seconds == pytest.approx([0.1, 0.25, 0.5, 0.7])
    assert [cost.fitted for cost in costs.values()] == [False, False, True, False]
    assert {group: row.dataset for group, row in costs["msp"].results.items()} == {
        "near": "mean",
        "far": "photos",
    }
    assert costs["gepc"].results["near"].metrics.auroc == pytest.approx(0.65)


def test_the_front_has_the_scores_that_are_better_than_all_that_cost_as_much_or_less(run):
    best = {cost.score: cost.best for cost in read_results(run).costs}
    assert best == {
        "msp": {"near", "far"},
        "label_pull": {"near", "far"},
        "gepc": frozenset(),
        # On far images the pull is as good, and cheaper.
        "dists": {"near"},
    }


def test_they_are_written_drawn_and_on_the_page(run, capsys):
    main([str(run)])
    assert "Scores by cost" in capsys.readouterr().out
    with (run / "costs.csv").open() as file:
        rows = {row["score"]: row for row in csv.DictReader(file)}
    assert float(rows["label_pull"]["near_auroc"]) == pytest.approx(0.7)
    assert rows["label_pull"]["far_best"] == "True"
    assert float(rows["dists"]["nfe"]) == 12
    assert float(rows["dists"]["near_auroc_low"]) <= 0.9
    with Image.open(run / "costs.png") as picture:
        assert picture.width > 1000
    page = (run / "report.html").read_text()
    assert 'id="costs"' in page
    assert "<strong>70.00</strong>" in page


def test_a_run_without_path_scores_has_none(run):
    change_record(run, score_costs={name: COSTS[name] for name in ("dists", "msp")})
    assert read_results(run).costs == []
    change_record(run, score_costs=None)
    assert read_results(run).costs == []
