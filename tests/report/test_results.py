"""Results of a run, read from its folder."""

import json

import pytest
from helpers.report_runs import DATASETS, change_record, make_plain_run, make_run, page_data

from diffguard_pl.report.build import build
from diffguard_pl.report.results import read_results


@pytest.mark.parametrize(
    "record",
    [
        [],
        "x",
        None,
        {
            "class_names": "zero",
            "sessions": [{"versions": ["torch"], "revisions": 3, "throughput": {"stages": [1]}}],
            "images": 7,
        },
        {"class_names": {"0": "zero"}, "sessions": "none", "images": {"ind": "many"}},
        {
            "class_names": ["zero", 1],
            "sessions": [{"machine": {"gpus": {"0": "H200"}, "cpus": 2}, "throughput": 3}, 5],
        },
    ],
)
def test_a_damaged_record_costs_names_and_facts_but_not_the_report(tmp_path, record):
    folder = make_plain_run(tmp_path / "run", {"letters": "near"}, pictures=1)
    (folder / "run.json").write_text(json.dumps(record))
    run = read_results(folder)
    page = build(run)[-1]
    assert run.class_names is None
    assert page_data(page)["cards"][0]["prediction"] == "0"


def test_class_names_are_shortened_as_far_as_they_stay_distinct(tmp_path):
    folder = make_plain_run(tmp_path / "run", {"letters": "near"})
    names = ["cock, rooster", "crane, bird", "crane, machine", "maillot", "maillot"]
    change_record(folder, class_names=names)
    short = ["cock", "crane, bird", "crane, machine", "maillot (3)", "maillot (4)"]
    assert read_results(folder).short_class_names == short


def test_an_unfinished_run_states_how_many_images_its_results_cover(tmp_path):
    folder = make_run(tmp_path / "run", pictures=0)
    ended, interrupted = {"ended": "2026-11-23T20:40:00+00:00"}, {"began": "2026-11-23T21:30:00"}

    change_record(folder, sessions=[ended, interrupted])
    assert "239 images" in read_results(folder).unfinished
    change_record(folder, images={name: 1000 for name in DATASETS})
    assert "239 of 4,000 images" in read_results(folder).unfinished

    change_record(folder, sessions=[interrupted, ended])
    assert read_results(folder).unfinished == "", "resumed, and then finished"
    change_record(folder, sessions=None)
    assert read_results(folder).unfinished == "", "nothing known"


def test_accuracy_is_over_labelled_in_distribution_images(tmp_path):
    run = read_results(make_run(tmp_path / "run", pictures=0))
    # Labels are i % 10, predictions i % 7, for 60 images.
    assert run.accuracy == pytest.approx(sum(i % 10 == i % 7 for i in range(60)) / 60)
    assert run.left_out == {"digits": 0, "letters": 0, "maps <b>&": 0, "photos": 1}
