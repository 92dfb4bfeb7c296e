"""Comparison of runs by paired differences."""

import math

import pytest
from helpers.report_runs import change_scores, make_plain_run, make_run

from diffguard_pl import InputError
from diffguard_pl.metrics.detection import detection_metrics
from diffguard_pl.report.comparison import compare, run_letter
from diffguard_pl.report.results import read_results


def compared(runs, dataset: str, *scores: str):
    """Return the comparison of the given scores on one dataset."""
    return next(c for c in compare(runs) if c.dataset == dataset and c.scores == scores)


def test_a_run_does_not_differ_from_itself(pair):
    found = compare([read_results(pair.a), read_results(pair.a)])
    assert len(found) == 10
    for score in found:
        no_difference = [(0.0, (0.0, 0.0))]
        assert score.differences == {"auroc": no_difference, "fpr95": no_difference}


def test_differences_are_paired(pair):
    a, b = read_results(pair.a), read_results(pair.b)
    found = compared([a, b], "letters", "dists", "maps")
    value, (low, high) = found.differences["auroc"][0]
    of_a, of_b = (result.metrics.auroc for result in found.results)
    assert value == pytest.approx(of_b - of_a)
    assert 0 < low < value < high

    # The interval is narrower than that of a difference of two independent samples.
    widths = [r.intervals["auroc"].high - r.intervals["auroc"].low for r in found.results]
    assert high - low < 0.8 * math.hypot(*widths)

    same = compared([a, b], "letters", "msp", "msp")
    assert same.differences["auroc"] == [(0.0, (0.0, 0.0))]


def test_differences_are_on_common_images_and_results_on_all_images_of_a_run(pair, tmp_path):
    fewer = make_run(tmp_path / "fewer", primary_score="maps", better=0.5, pictures=0)
    change_scores(fewer, lambda frame: frame[frame["index"] % 3 > 0])
    a, b = read_results(pair.a), read_results(fewer)
    found = compared([a, b], "photos", "dists", "maps")

    both = a.frame.merge(b.frame, on=["dataset", "index"], suffixes=("", "_b"))
    both = both[both["error"].isna()]
    ind, ood = (both[both["dataset"] == name] for name in ("digits", "photos"))
    aurocs = [
        detection_metrics(ind[score].to_numpy(), ood[score].to_numpy()).auroc
        for score in ("dists", "maps")
    ]
    assert found.differences["auroc"][0].value == pytest.approx(aurocs[1] - aurocs[0])

    whole = next(r for r in a.results if r[:3] == ("far", "photos", "dists"))
    assert found.results[0].metrics == whole.metrics


def test_means_are_compared_only_over_equal_datasets(tmp_path):
    two, three = {"a": "near", "b": "near"}, {"a": "near", "b": "near", "c": "near"}
    hard, split = {"a": "hard", "b": "hard"}, {"a": "near", "b": "far"}
    runs = [
        read_results(make_plain_run(tmp_path / f"{i}", groups))
        for i, groups in enumerate((two, two, three, hard, split))
    ]

    def names(*chosen: int) -> list[tuple[str, str]]:
        return [(score.group, score.dataset) for score in compare([runs[i] for i in chosen])]

    datasets, average = [("near", "a"), ("near", "b")], ("all", "average")
    assert names(0, 1) == [*datasets, ("near", "mean"), average]
    assert names(0, 2) == datasets
    for other in (3, 4):
        assert names(0, other) == [*datasets, average], "in the groups of the first run"
    assert names(2, 0) == datasets
    assert names(0, 1, 2) == datasets
    assert names(3, 0) == [("hard", "a"), ("hard", "b"), average]


def test_a_mean_is_left_out_if_one_of_its_datasets_has_no_common_image(tmp_path):
    groups = {"a": "near", "b": "near", "c": "near"}
    runs = [make_plain_run(tmp_path / name, groups) for name in "ab"]

    def elsewhere(frame):
        frame.loc[frame["dataset"] == "b", "path"] = "elsewhere.png"
        return frame

    change_scores(runs[1], elsewhere)
    found = compare([read_results(run) for run in runs])
    assert [score.dataset for score in found] == ["a", "c"]


def test_runs_with_some_common_datasets_are_compared_on_those(pair, tmp_path):
    fewer = make_run(tmp_path / "fewer", datasets=["digits", "photos"], pictures=0)
    found = compare([read_results(pair.a), read_results(fewer)])
    assert {score.dataset for score in found} == {"photos"}


def test_runs_with_different_in_distribution_datasets_are_refused(pair, tmp_path):
    other = make_run(tmp_path / "other", datasets=["letters", "photos"], pictures=0)
    with pytest.raises(InputError, match=r"other.*in-distribution.*same"):
        compare([read_results(pair.a), read_results(other)])


def test_runs_without_common_images_are_refused(tmp_path):
    letters = make_run(tmp_path / "d", datasets=["digits", "letters"], pictures=0)
    photos = make_run(tmp_path / "e", datasets=["digits", "photos"], pictures=0)
    with pytest.raises(InputError, match="no images in common"):
        compare([read_results(letters), read_results(photos)])


def test_runs_have_letters_beyond_the_alphabet():
    assert [run_letter(number) for number in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]
