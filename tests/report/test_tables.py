"""Tables in the terminal and as CSV files."""

import numpy as np
import pytest
from helpers.report_runs import (
    GROUPS,
    change_record,
    make_plain_run,
    make_run,
    read_csv,
)

from diffguard_pl.commands.report import main
from diffguard_pl.metrics.detection import DetectionMetrics, detection_metrics
from diffguard_pl.metrics.table import Interval, ResultRow
from diffguard_pl.report.results import read_results
from diffguard_pl.report.tables import result_table, terminal
from diffguard_pl.runs.store import read_scores


def test_metrics_csv_holds_the_metrics_of_the_scores_with_their_intervals(built_run):
    frame, header = read_scores(built_run)
    scored = frame[frame["error"].isna()]
    lines = read_csv(built_run / "metrics.csv")
    found = {(line["group"], line["dataset"], line["score"]): line for line in lines}
    for dataset, group in GROUPS.items():
        for score in header.scores:
            line = found[group, dataset, score]
            ind, ood = (
                scored.loc[scored["dataset"] == name, score].to_numpy()
                for name in ("digits", dataset)
            )
            expected = detection_metrics(ind, ood)
            values = [float(line[name]) for name in expected._fields]
            assert values == pytest.approx(list(expected), abs=1e-12)
            for metric in ("auroc", "fpr95"):
                ends = [float(line[f"{metric}_low"]), float(line[f"{metric}_high"])]
                assert 0 <= ends[0] <= float(line[metric]) <= ends[1] <= 1
    near = [float(found["near", name, "dists"]["auroc"]) for name in ("letters", "maps <b>&")]
    assert float(found["near", "mean", "dists"]["auroc"]) == pytest.approx(np.mean(near))
    three = [float(found[group, name, "dists"]["fpr95"]) for name, group in GROUPS.items()]
    average = found["all", "average", "dists"]
    assert float(average["fpr95"]) == pytest.approx(np.mean(three))
    assert float(average["fpr95_low"]) <= np.mean(three) <= float(average["fpr95_high"])
    assert len(found) == 10, "three datasets, the mean of near and that of all, with two scores"


def test_a_name_in_a_table_file_is_no_formula(tmp_path, capsys):
    groups = {"=1+1": "near", "-2+3": "@far"}
    runs = [make_plain_run(tmp_path / "runs" / name, groups, pictures=0) for name in ("=a", "b")]
    main([*map(str, runs), "--out", str(tmp_path / "both.html")])
    for file in (runs[0] / "metrics.csv", tmp_path / "both.csv"):
        lines = read_csv(file)
        assert {"'=1+1", "'-2+3"} <= {line["dataset"] for line in lines}
        assert {"near", "'@far", "all"} == {line["group"] for line in lines}
        cells = [cell for line in lines for cell in line.values()]
        numbers = [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
        assert all(float(number) < 0 for number in numbers)


def test_tables_print_a_name_as_it_is(tmp_path, capsys):
    """A dollar sign is not the beginning of a formula, and a bracket not that of markup."""
    groups = {"$\\frac$": "$x_$", "_b [red]c[/x]": "near"}
    folders = [
        make_plain_run(tmp_path / "$a$" / name, groups, pictures=1) for name in ("p[red]1", "q[/x]")
    ]
    main([*map(str, folders), "--out", str(tmp_path / "[b]$.html")])
    printed = capsys.readouterr().out
    for path in (*(folder / "report.html" for folder in folders), tmp_path / "[b]$.html"):
        assert f": {path}\n" in printed
    for name in groups:
        assert printed.count(f" {name} ") == 3, "in both result tables and in the comparison"


def test_no_column_is_cut_off_in_a_log(capsys):
    """A log has no width of its own; rich would assume 80 columns, too few for the intervals."""
    sizes = {"digits": 1797, "a dataset of some length": 10_000}
    run = {"accuracy": 0.9876, "sizes": sizes, "left_out": {}, "primary_score": "mahalanobis"}
    intervals = {"auroc": Interval(0.9912, 0.9999), "fpr95": Interval(0.1, 0.2)}
    metrics = DetectionMetrics(0.9956, 0.15, 1.0, 1.0, 0.1)
    result = ResultRow("near", "a dataset of some length", "mahalanobis", metrics, intervals)
    terminal().print(result_table([result], datasets=list(sizes), **run))
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "mahalanobis" in line)
    for cell in ("a dataset of some length", "99.56 [99.1, 100.0]", "15.00 [10.0, 20.0]", "100.00"):
        assert cell in row


def test_the_report_of_an_unfinished_run_is_marked_as_such_everywhere(tmp_path, capsys):
    finished, unfinished = (make_run(tmp_path / name, pictures=0) for name in "ab")
    change_record(unfinished, sessions=[{"began": "2026-11-23T21:30:00+00:00"}])
    main([str(finished), str(unfinished), "--out", str(tmp_path / "both.html")])
    note = read_results(unfinished).unfinished
    assert note

    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count(note) == 2, "in its result table and in the comparison"
    for page in (unfinished / "report.html", tmp_path / "both.html"):
        assert page.read_text().count(f"{note.capitalize()}.") == 1
    assert note.capitalize() not in (finished / "report.html").read_text()


@pytest.mark.parametrize("name", ["metrics.csv", ".", "page"])
def test_a_comparison_that_is_not_html_is_refused_before_anything_is_written(
    pair, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.csv").write_text("mine")
    with pytest.raises(SystemExit, match=r"^error: --out.*\.html") as stopped:
        main([str(pair.a), str(pair.b), "--out", name])
    assert "\n" not in str(stopped.value)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert (tmp_path / "metrics.csv").read_text() == "mine"


def test_a_comparison_is_written_to_terminal_csv_and_page(pair, tmp_path, capsys):
    main([str(pair.a), str(pair.b), "--out", str(tmp_path / "both.html")])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"comparison: {tmp_path / 'both.html'}"

    lines = read_csv(tmp_path / "both.csv")
    assert {line["run"] for line in lines} == {f"{pair.a.parent.name}/a", f"{pair.a.parent.name}/b"}
    assert {line["folder"] for line in lines} == {str(pair.a), str(pair.b)}
    line = next(line for line in lines if line["dataset"] == "letters" and line["score"] == "maps")
    ends = [float(line[f"auroc_minus_first{part}"]) for part in ("_low", "", "_high")]
    assert 0 < ends[0] < ends[1] < ends[2]
    assert f"{100 * ends[1]:+.2f}" in printed
