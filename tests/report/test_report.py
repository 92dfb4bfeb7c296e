"""Reports: intervals, tables, comparisons of runs, and the page as a browser shows it; all from the folder of a run."""

import contextlib
import csv
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import norm

from diffguard_pl import InputError
from diffguard_pl.commands.report import main
from diffguard_pl.metrics.bootstrap import intervals, replicates
from diffguard_pl.metrics.detection import detection_metrics
from diffguard_pl.metrics.table import ScoreTable, result_rows
from diffguard_pl.report.build import build, grid_strips
from diffguard_pl.report.cascade_curve import BUDGETS
from diffguard_pl.report.gallery import Kept, folder_name, keep, picture_path
from diffguard_pl.report.page import cards
from diffguard_pl.report.page.cards import confusion, threshold
from diffguard_pl.report.page.write import write_comparison_page, write_page
from diffguard_pl.report.plots import roc
from diffguard_pl.report.results import read_results
from diffguard_pl.report.tables import compare, terminal
from diffguard_pl.runs.store import Header, PartWriter, part_files, read_scores, score_table
from diffguard_pl.scores.combination import Cascade, Combination, Fusion

GROUPS = {"letters": "near", "maps <b>&": "near", "photos": "far"}
DATASETS = ["digits", *GROUPS]
SHIFT = {"digits": 0.0, "letters": 0.8, "maps <b>&": 1.5, "photos": 3.0}
ODD_PATH = "a folder/</script><script>document.title='broken in'</script>.png"


def make_run(
    folder: Path,
    *,
    count: int = 60,
    seed: int = 0,
    headline: str = "dists",
    better: float = 0.0,
    datasets: list[str] = DATASETS,
    pictures: int = 12,
    side: int = 16,
    panels: tuple[str, ...] = ("input", "unguided", "reconstruction", "mask"),
    combination: Combination | None = None,
) -> Path:
    """The folder of a run of ``count`` images a set: MSP the same for each seed, a headline score that goes along with it.

    ``better`` moves out-of-distribution images away; some have no score, and inversion stops where chance will have it.
    """
    chance = np.random.default_rng(seed)
    combined = combination.for_header() if combination else None
    header = Header(
        [headline, "msp"],
        datasets,
        {name: GROUPS.get(name, name) for name in datasets[1:]},
        [],
        combined,
    )
    writer = PartWriter(folder, header, "0-0")
    for name in datasets:
        msp = (chance.normal(-SHIFT.get(name, 0.0), size=count)).round(1)
        own = (
            msp
            + chance.normal(scale=0.3, size=count)
            - better * (name not in (datasets[0], "calibration"))
        )
        for i in range(count):
            line = {
                "dataset": name,
                "group": header.groups.get(name, "ind"),
                "index": i,
                "path": f"{name}/{i}.png",
                "label": -1,
            }
            if name == datasets[0]:
                line |= {"label": i % 10}
            if name == "photos" and i == 3:
                writer.add([line | {"path": ODD_PATH, "error": "cannot identify image file <x>"}])
                continue
            if name == "photos" and i == 4:
                line["path"] = ODD_PATH
            writer.add(
                [
                    line
                    | {
                        "prediction": i % 7,
                        "reconstructed_as": i % 7,
                        "stop_index": int(chance.integers(10, 30)),
                        "seconds": 0.1,
                    }
                    | {headline: float(own[i]), "msp": float(msp[i])}
                ]
            )
            if i < pictures:
                pixels = chance.integers(0, 256, (len(panels), side, side, 3), dtype=np.uint8)
                keep(
                    folder,
                    Kept(
                        name,
                        i,
                        {
                            panel: Image.fromarray(p)
                            for panel, p in zip(panels, pixels, strict=True)
                        },
                    ),
                )
        writer.flush()
    (folder / "run.json").write_text(
        json.dumps(
            {
                "class_names": [
                    "zero",
                    "one, the first",
                    "two",
                    "three",
                    "four",
                    "five",
                    "six",
                    "seven",
                    "eight",
                    "nine",
                ],
                "config": {"model": {"steps": 50}, "data": {"note": "</script>"}},
                "sessions": [
                    {
                        "began": "2026-11-23T20:30:00+00:00",
                        "ended": "2026-11-23T20:40:00+00:00",
                        "command": ["python", "-m", "diffguard_pl.test", "--config", "a b.yaml"],
                        "machine": {"host": "node1", "cpus": 2, "gpus": []},
                        "throughput": {
                            "images_per_second": 3.5,
                            "nfe_per_second": 700,
                            "stages": {"inversion": 2.0, "other": 1.0},
                        },
                        "versions": {"torch": "2.11.0"},
                    }
                ],
            }
        )
    )
    return folder


def plain_run(
    folder: Path,
    groups: dict[str, str],
    *,
    count: int = 12,
    scores: tuple[str, ...] = ("dists",),
    path: str = "",
    pictures: int = 0,
) -> Path:
    """The folder of a run of any sets, the first one without a group, without a record; a set's scores begin with its NaN ones.

    There are two NaN scores in each set that is called so.
    """
    chance = np.random.default_rng(0)
    header = Header(list(scores), ["ind", *groups], groups, [])
    writer = PartWriter(folder, header, "0-0")
    for d, name in enumerate(header.datasets):
        values = chance.normal(-d / 2, size=(count, len(scores))).round(4)
        values[: 2 * (name == "nan")] = np.nan
        for i in range(count):
            line = {
                "dataset": name,
                "group": groups.get(name, "ind"),
                "index": i,
                "path": f"{path}{i}.png",
            }
            line |= {
                "label": i % 3 if d == 0 else -1,
                "prediction": i % 3,
                "reconstructed_as": i % 3,
                "seconds": 0.1,
            }
            writer.add([line | dict(zip(scores, values[i].tolist(), strict=True))])
            if i < pictures:
                panel = Image.fromarray(chance.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                keep(folder, Kept(name, i, {"input": panel, "reconstruction": panel}))
    writer.flush()
    return folder


def change_record(run: Path, **entries) -> None:
    """Replace entries of ``run.json``; what is None goes."""
    path = run / "run.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(
        json.dumps({name: value for name, value in (record | entries).items() if value is not None})
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "digits_ldm" / "2026-11-23_20-30-00")
    build(read_results(folder))
    return folder


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table_of(*sets: np.ndarray, groups: dict[str, str] | None = None) -> ScoreTable:
    names = ["ind", *(f"ood{d}" for d in range(1, len(sets)))]
    members = np.concatenate([np.full(len(of_set), d) for d, of_set in enumerate(sets)])
    return ScoreTable(
        [f"s{k}" for k in range(sets[0].shape[1])],
        names,
        groups or {},
        np.concatenate(sets),
        members,
    )


# intervals


def test_a_draw_is_what_drawing_the_images_and_computing_the_figures_gives():
    chance = np.random.default_rng(1)
    sets = [
        chance.normal(-d, size=(n, 2)).round(1) for d, n in enumerate((41, 30, 20))
    ]  # many ties
    table = table_of(*sets, groups={"ood1": "near", "ood2": "near"})
    drawn = replicates(table, resamples=30, seed=5)
    again = np.random.default_rng(5)
    for r in range(30):
        taken = [of_set[again.integers(len(of_set), size=len(of_set))] for of_set in sets]
        for k, score in enumerate(table.scores):
            expected = [
                detection_metrics(*(torch.from_numpy(t[:, k]) for t in (taken[0], ood)))[:2]
                for ood in taken[1:]
            ]
            for d, name in enumerate(table.datasets[1:]):
                assert drawn["near", name, score][r] == pytest.approx(expected[d], abs=1e-12)
            assert drawn["near", "mean", score][r] == pytest.approx(
                np.mean(expected, axis=0), abs=1e-12
            )


def test_intervals_hold_the_true_auroc_as_often_as_they_say():
    """Two normal distributions one apart: the true AUROC is known."""
    chance, true, held = np.random.default_rng(2), norm.cdf(1 / math.sqrt(2)), 0
    for _ in range(200):
        table = table_of(chance.normal(size=(80, 1)), chance.normal(-1, size=(80, 1)))
        low, high = intervals(replicates(table, resamples=200)["ood1", "ood1", "s0"])["auroc"]
        held += low <= true <= high
    assert 0.90 <= held / 200 <= 0.99


def test_sets_that_are_empty_or_hold_nan_have_no_interval_and_spoil_no_other():
    table = table_of(np.zeros((4, 1)), np.full((3, 1), np.nan), np.zeros((0, 1)), -np.ones((3, 1)))
    drawn = replicates(table, resamples=5)
    assert np.isnan(drawn["ood1", "ood1", "s0"]).all()
    assert np.isnan(drawn["ood2", "ood2", "s0"]).all()
    assert (drawn["ood3", "ood3", "s0"] == [1, 0]).all()


# tables


def test_metrics_csv_holds_the_figures_of_the_scores_with_their_intervals(run):
    frame, header = read_scores(run)
    found = {
        (line["group"], line["dataset"], line["score"]): line
        for line in lines_of(run / "metrics.csv")
    }
    scored = frame[frame["error"].isna()]
    for dataset, group in GROUPS.items():
        for score in header.scores:
            line = found[group, dataset, score]
            sets = [
                torch.tensor(scored.loc[scored["dataset"] == name, score].to_numpy())
                for name in ("digits", dataset)
            ]
            assert tuple(
                float(line[name]) for name in detection_metrics(*sets)._fields
            ) == pytest.approx(detection_metrics(*sets), abs=1e-12)
            for figure in ("auroc", "fpr95"):
                assert (
                    0
                    <= float(line[f"{figure}_low"])
                    <= float(line[figure])
                    <= float(line[f"{figure}_high"])
                    <= 1
                )
    mean = np.mean(
        [float(found["near", name, "dists"]["auroc"]) for name in ("letters", "maps <b>&")]
    )
    assert float(found["near", "mean", "dists"]["auroc"]) == pytest.approx(mean)
    assert len(found) == 8, "three sets and the near mean, two scores; one far set needs no mean"


def test_everything_is_rebuilt_from_scores_and_pictures_alone(run, tmp_path, capsys):
    bare = tmp_path / "bare"
    for name in ("scores", "pictures"):
        shutil.copytree(run / name, bare / name)
    main([str(bare)])
    assert (bare / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    for name in ("report.html", "plots.png", "pictures.png"):
        assert (bare / name).stat().st_size > 1000, name
    said = capsys.readouterr().out
    assert "Out-of-distribution detection against digits" in said
    assert said.splitlines()[-1].split() == ["report:", str(bare / "report.html")]


def test_the_order_and_the_number_of_parts_do_not_matter(run, tmp_path):
    other = tmp_path / "other"
    frame, header = read_scores(run)
    lines = frame.sample(frac=1, random_state=0).astype(object)
    lines = lines.where(lines.notna(), None).to_dict("records")
    for rank in (1, 0):
        writer = PartWriter(other, header, f"9-{rank}")
        writer.add(lines[rank::2])
        writer.flush()
    build(read_results(other))
    assert (other / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


def test_a_run_without_pictures_has_a_page_without_a_gallery(tmp_path):
    written = build(read_results(make_run(tmp_path / "run", pictures=0)))
    assert [path.name for path in written] == ["metrics.csv", "plots.png", "report.html"]
    assert 'id="gallery"' not in written[-1].read_text()


def test_damaged_and_foreign_pictures_are_passed_over(tmp_path):
    folder = make_run(tmp_path / "run", pictures=2)
    (folder / "pictures" / "digits" / "0.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(folder / "pictures" / "digits" / "mine.png")
    cut = folder / "pictures" / "letters" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-400])
    found = {
        (card["dataset"], card["index"])
        for card in data_of(build(read_results(folder))[-1])["cards"]
    }
    assert found == {
        ("digits", 1),
        ("letters", 0),
        ("maps <b>&", 0),
        ("maps <b>&", 1),
        ("photos", 0),
        ("photos", 1),
    }


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda run: shutil.rmtree(run), "not a diffguard_pl run"),
        (lambda run: shutil.rmtree(run / "scores"), "not a diffguard_pl run"),
        (
            lambda run: part_files(run)[1].write_bytes(b"PAR1 half"),
            "part-0-0-000001.parquet: cannot be read",
        ),
        (lambda run: part_files(run)[0].unlink(), "no scores of the in-distribution set digits"),
    ],
)
def test_what_is_no_whole_run_is_named_in_one_line(tmp_path, spoil, named):
    run = make_run(tmp_path / "run", pictures=0)
    spoil(run)
    with pytest.raises(SystemExit) as stopped:
        main([str(run)])
    said = str(stopped.value)
    assert said.startswith("error: ")
    assert named in said
    assert "\n" not in said


# what a run may be like


def test_a_run_that_has_not_ended_says_so(tmp_path, capsys):
    folders = [make_run(tmp_path / name, pictures=0) for name in "ab"]
    ended, open_ = {"ended": "2026-11-23T20:40:00+00:00"}, {"began": "2026-11-23T21:30:00+00:00"}
    change_record(folders[1], sessions=[ended, open_])
    read_ = read_results(folders[1])
    assert read_.unfinished == "not finished: figures are of the 239 images so far"
    change_record(folders[1], images={name: 1000 for name in DATASETS})
    main([*map(str, folders), "--out", str(tmp_path / "both.html")])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("not finished: figures are of 239 of 4,000 images") == 2, (
        "in its own table and in the comparison"
    )
    for page in (folders[1] / "report.html", tmp_path / "both.html"):
        head = page.read_text().partition("</header>")[0]
        assert head.count("Not finished: figures are of 239 of 4,000 images.") == 1
    assert (
        "finished"
        not in (folders[0] / "report.html")
        .read_text()
        .partition("</header>")[0]
        .partition("</style>")[2]
    )
    change_record(folders[1], sessions=[open_, ended])
    assert read_results(folders[1]).unfinished == "", "gone on with, and ended"
    change_record(folders[1], sessions=None)
    assert read_results(folders[1]).unfinished == ""


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
def test_what_is_no_record_is_passed_over(tmp_path, record):
    folder = plain_run(tmp_path / "run", {"letters": "near"}, pictures=1)
    (folder / "run.json").write_text(json.dumps(record))
    results = read_results(folder)
    page = build(results)[-1]
    assert results.class_names is None
    assert data_of(page)["cards"][0]["prediction"] == "0"


def test_signs_in_names_are_text(tmp_path, capsys):
    """Of formulas to matplotlib, of markup to rich."""
    groups = {"$\\frac$": "$x_$", "_b [red]c[/x]": "near"}
    folders = [
        plain_run(tmp_path / "$a$" / name, groups, pictures=1) for name in ("p[red]1", "q[/x]")
    ]
    main([*map(str, folders), "--out", str(tmp_path / "[b]$.html")])
    said = capsys.readouterr().out
    for path in (*(folder / "report.html" for folder in folders), tmp_path / "[b]$.html"):
        assert f": {path}\n" in said
    for name in groups:
        assert said.count(f" {name} ") == 3, name
    assert (folders[0] / "plots.png").stat().st_size > 1000


def test_nan_is_neither_most_nor_least_mismatched(tmp_path):
    results = read_results(plain_run(tmp_path / "run", {"nan": "near"}, pictures=12))
    drawn = grid_strips(results)["nan (near), 12 images"]
    captions = {
        kind: [picture.caption.split()[-1] for picture in pictures]
        for kind, pictures in drawn.items()
    }
    of_set = sorted(results.table.of(1)[2:, 0])
    assert captions["most mismatched"] == [f"{value:.3f}" for value in of_set[:6]]
    assert captions["least mismatched"] == [f"{value:.3f}" for value in of_set[:-7:-1]]


def test_sets_of_like_names_have_their_own_pictures(tmp_path):
    names = ["a_b", "a/b", "a b", "..", "."]
    assert folder_name("a_b") == "a_b"
    assert len({folder_name(name) for name in names}) == 5
    assert all(re.fullmatch(r"[\w.-]+-[0-9a-f]{8}", folder_name(name)) for name in names[1:])
    folder = plain_run(tmp_path / "run", dict.fromkeys(names, "near"), count=3, pictures=2)
    assert {path.parent.parent for path in folder.glob("**/*.png")} == {folder / "pictures"}
    named = picture_path(folder, "a/b", 0).parent
    named.rename(folder / "pictures" / "a_b_before")  # a run from when folders had other names
    found = {
        (card["dataset"], card["index"])
        for card in data_of(build(read_results(folder))[-1])["cards"]
    }
    assert found == {(name, i) for name in ["ind", *names] for i in range(2)}


def test_tiles_show_the_interval_of_each_figure(run):
    results = read_results(run)
    tile = re.search(
        r'<div class="tile">\s*<h2>far.*?</dl>', (run / "report.html").read_text(), re.S
    )[0]
    rows = {row.score: row for row in results.rows if row.dataset == "photos"}
    for row, figure in ((rows["dists"], "auroc"), (rows["dists"], "fpr95"), (rows["msp"], "auroc")):
        low, high = row.intervals[figure]
        assert f"{100 * low:.1f} to {100 * high:.1f}" in tile
        assert f"{100 * getattr(row.metrics, figure):.2f}" in tile


def test_class_names_are_short_where_they_stay_apart(tmp_path):
    folder = plain_run(tmp_path / "run", {"letters": "near"})
    change_record(
        folder, class_names=["cock, rooster", "crane, bird", "crane, machine", "maillot", "maillot"]
    )
    shown = ["cock", "crane, bird", "crane, machine", "maillot (3)", "maillot (4)"]
    assert read_results(folder).short_class_names == shown


def test_the_tables_are_wide_enough_where_there_is_no_terminal(capsys):
    assert terminal().width == 120


# the gallery's order


def test_the_threshold_is_that_of_fpr95():
    chance = np.random.default_rng(3)
    for count in (1, 7, 19, 20, 21, 100, 101):
        ind, ood = chance.normal(size=count).round(1), chance.normal(-1, size=50).round(1)
        fpr95 = detection_metrics(torch.from_numpy(ind), torch.from_numpy(ood)).fpr95
        assert (ood >= threshold(ind)).mean() == pytest.approx(fpr95), count


def test_confusing_images_are_those_on_the_wrong_side_and_the_further_the_more_so():
    ind, ood = np.arange(100.0), np.array([-5.0, 4.0, 50.0, 98.5])
    found = confusion(np.r_[ind, ood], np.arange(104) < 100)
    assert threshold(ind) == 5
    assert (found > 0).tolist() == [True] * 5 + [False] * 95 + [False, False, True, True]
    assert found[103] > found[102] > found[101] > found[100]
    assert list(found[:5]) == sorted(found[:5], reverse=True)
    assert np.isnan(confusion(np.array([np.nan, 1.0, 0.0]), np.array([True, True, False]))[0])


def test_roc_curves_of_many_scores_are_thinned_and_keep_their_area():
    chance = np.random.default_rng(4)
    ind, ood = chance.normal(size=5000), chance.normal(-1, size=5000)
    x, y = roc(ind, ood)
    assert len(x) <= 300
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    area = (np.diff(x) * (y[1:] + y[:-1]) / 2).sum()
    assert area == pytest.approx(
        detection_metrics(torch.from_numpy(ind), torch.from_numpy(ood)).auroc, abs=1e-3
    )


# comparison


@dataclass
class Pair:
    """Two runs of the same images, the second one somewhat better."""

    a: Path
    b: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    return Pair(
        make_run(folder / "a", pictures=0),
        make_run(folder / "b", headline="maps", better=0.5, pictures=0),
    )


def test_a_run_against_itself_differs_by_nothing(pair):
    lines = compare([read_results(pair.a), read_results(pair.a)])
    assert len(lines) == 8
    for line in lines:
        assert line.less_first == {name: [(0.0, (0.0, 0.0))] for name in ("auroc", "fpr95")}


def test_means_are_compared_over_the_same_sets_only(tmp_path):
    """A mean over other sets would stand beside a difference on common ones."""
    two, three = {"a": "near", "b": "near"}, {"a": "near", "b": "near", "c": "near"}
    runs = [
        read_results(plain_run(tmp_path / f"{i}", groups))
        for i, groups in enumerate(
            (two, two, three, {"a": "hard", "b": "hard"}, {"a": "near", "b": "far"})
        )
    ]

    def lines(*which: int) -> list[tuple[str, str]]:
        return [(line.group, line.dataset) for line in compare([runs[i] for i in which])]

    sets = [("near", "a"), ("near", "b")]
    assert lines(0, 1) == [*sets, ("near", "mean")]
    for other in (2, 3, 4):
        assert lines(0, other) == sets, "compared by name, in the first run's groups"
    assert lines(2, 0) == sets
    assert lines(0, 1, 2) == sets
    assert lines(3, 0) == [("hard", "a"), ("hard", "b")]


def test_a_mean_is_left_out_where_the_runs_share_no_image_of_one_set(tmp_path):
    runs = [plain_run(tmp_path / name, {"a": "near", "b": "near", "c": "near"}) for name in "ab"]
    frame, header = read_scores(runs[1])
    shutil.rmtree(runs[1] / "scores")
    frame.loc[frame["dataset"] == "b", "path"] = "elsewhere.png"
    writer = PartWriter(runs[1], header, "0-0")
    lines = frame.astype(object)
    writer.add(lines.where(lines.notna(), None).to_dict("records"))
    writer.flush()
    assert [line.dataset for line in compare([read_results(run) for run in runs])] == ["a", "c"]


@pytest.mark.parametrize("name", ["figures.csv", ".", "page"])
def test_a_comparison_is_written_as_html_or_not_at_all(pair, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures.csv").write_text("mine")
    with pytest.raises(
        SystemExit, match=r"^error: .*expected a file name that ends in \.html"
    ) as stopped:
        main([str(pair.a), str(pair.b), "--out", name])
    assert "\n" not in str(stopped.value)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.csv"]
    assert (tmp_path / "figures.csv").read_text() == "mine"


def test_differences_are_paired(pair):
    a, b = read_results(pair.a), read_results(pair.b)
    line = next(
        line
        for line in compare([a, b])
        if line.dataset == "letters" and line.score == ("dists", "maps")
    )
    value, (low, high) = line.less_first["auroc"][0]
    assert value == pytest.approx(line.rows[1].metrics.auroc - line.rows[0].metrics.auroc)
    assert 0 < low < value < high
    alone = [row.intervals["auroc"] for row in line.rows]
    assert high - low < 0.8 * math.hypot(*(end.high - end.low for end in alone)), (
        "as wide as if the images were not the same"
    )
    same = next(
        line
        for line in compare([a, b])
        if line.dataset == "letters" and line.score == ("msp", "msp")
    )
    assert same.less_first["auroc"] == [(0.0, (0.0, 0.0))]


def test_differences_are_on_the_images_that_both_have(pair, tmp_path):
    fewer = make_run(tmp_path / "fewer", headline="maps", better=0.5, pictures=0)
    frame, header = read_scores(fewer)
    shutil.rmtree(fewer / "scores")
    kept = frame[frame["index"] % 3 > 0].astype(object)
    writer = PartWriter(fewer, header, "0-0")
    writer.add(kept.where(kept.notna(), None).to_dict("records"))
    writer.flush()
    a, b = read_results(pair.a), read_results(fewer)
    line = next(
        line
        for line in compare([a, b])
        if line.dataset == "photos" and line.score == ("dists", "maps")
    )
    both = a.frame.merge(b.frame, on=["dataset", "index"], suffixes=("", "_b"))
    both = both[both["error"].isna()]
    ind, ood = (both[both["dataset"] == name] for name in ("digits", "photos"))
    expected = [
        detection_metrics(torch.tensor(ind[s].to_numpy()), torch.tensor(ood[s].to_numpy())).auroc
        for s in ("dists", "maps")
    ]
    assert line.less_first["auroc"][0][0] == pytest.approx(expected[1] - expected[0])
    assert (
        line.rows[0].metrics
        == next(r for r in a.rows if r[:3] == ("far", "photos", "dists")).metrics
    ), "each run's own stays"


def test_the_command_compares_runs_in_terminal_csv_and_page(pair, tmp_path, capsys):
    main([str(pair.a), str(pair.b), "--out", str(tmp_path / "both.html")])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"comparison: {tmp_path / 'both.html'}"
    lines = lines_of(tmp_path / "both.csv")
    assert {line["run"] for line in lines} == {f"{pair.a.parent.name}/a", f"{pair.a.parent.name}/b"}
    assert {line["folder"] for line in lines} == {str(pair.a), str(pair.b)}
    better = next(
        line for line in lines if line["dataset"] == "letters" and line["score"] == "maps"
    )
    assert float(better["auroc_less_first_low"]) > 0
    assert "+" in said


def test_runs_that_cannot_be_compared_are_named(pair, tmp_path):
    for other, named in (
        (
            make_run(tmp_path / "b", datasets=["letters", "photos"], pictures=0),
            "one in-distribution set",
        ),
        (make_run(tmp_path / "c", datasets=["digits", "photos"], pictures=0), None),
    ):
        runs = [read_results(pair.a), read_results(other)]
        if named is None:
            assert {line.dataset for line in compare(runs)} == {"photos"}
        else:
            with pytest.raises(InputError, match=named):
                compare(runs)
    only_letters = make_run(tmp_path / "d", datasets=["digits", "letters"], pictures=0)
    only_photos = make_run(tmp_path / "e", datasets=["digits", "photos"], pictures=0)
    with pytest.raises(InputError, match="have no images in common"):
        compare([read_results(only_letters), read_results(only_photos)])


# the page


def data_of(page: Path) -> dict:
    """What the page is drawn from."""
    return json.loads(
        re.search(
            r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.S
        )[1]
    )


def test_a_page_of_ten_thousand_images_stays_below_15_mb_and_says_how_it_was_sampled(tmp_path):
    folder = make_run(
        tmp_path / "run", count=2500, pictures=60, side=256
    )  # noise: as large as pictures get
    page = build(read_results(folder))[-1]
    assert page.stat().st_size < 15_000_000
    cards = data_of(page)["cards"]
    assert len(cards) < 240
    assert {card["dataset"] for card in cards} == set(DATASETS)
    assert f"{len(cards)} of 239 images whose pictures were kept, of 9,999 scored" in " ".join(
        page.read_text().split()
    )
    first = cards[0]["confusion"][0]
    assert all(
        card["confusion"][0] <= first for card in cards if card["dataset"] == cards[0]["dataset"]
    )


def test_a_page_of_many_sets_scores_and_small_pictures_stays_below_15_mb(tmp_path, monkeypatch):
    """Here text and curves weigh more than pictures."""
    groups, scores = {f"set {d}": "near" for d in range(30)}, tuple(f"score {k}" for k in range(12))
    folder = plain_run(tmp_path / "run", groups, count=330, scores=scores, path="a folder/" * 13)
    frame, header = read_scores(folder)
    pairs = list(zip(frame["dataset"], frame["index"], strict=True))
    small = {
        "pictures": dict.fromkeys(
            ("input", "reconstruction", "difference"), "data:image/webp;base64," + "A" * 120
        ),
        "small": True,
    }
    monkeypatch.setattr(cards, "kept_pictures", lambda run: dict.fromkeys(pairs, run))
    monkeypatch.setattr(cards, "_panels", lambda path: small)
    write_page(
        read_results(folder, result_rows(score_table(frame, header))), tmp_path / "report.html"
    )
    assert 13_000_000 < (tmp_path / "report.html").stat().st_size < 15_000_000
    shown = data_of(tmp_path / "report.html")["cards"]
    assert len(shown) < len(pairs) == 31 * 330
    assert {card["dataset"] for card in shown} == set(header.datasets)


def test_the_page_is_one_file_that_asks_for_nothing(run):
    page = (run / "report.html").read_text()
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', markup)
    assert not re.findall(r"@import|url\((?!#|data:)", markup)


@contextlib.contextmanager
def opened(browser, path: Path, **settings) -> Iterator:
    """The page from disk; nothing may go wrong in it, and it may ask nobody for anything."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
    page, wrong = context.new_page(), []
    page.on(
        "console",
        lambda message: (
            wrong.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: (
            wrong.append(asked.url)
            if not asked.url.startswith(("data:", "blob:", path.as_uri()))
            else None
        ),
    )
    page.goto(path.as_uri())
    page.wait_for_selector("#plot-roc .main-svg")
    yield page
    context.close()
    assert wrong == []


def column(page, number: int, table: str = "result-table") -> list[str]:
    return page.eval_on_selector_all(
        f"#{table} tbody tr", f"rows => rows.map(r => r.cells[{number}].textContent.trim())"
    )


def cards_of(page) -> list[str]:
    return page.eval_on_selector_all(
        "#cards .top > span:first-child", "spans => spans.map(s => s.textContent)"
    )


def _is_dark(page) -> bool:
    return (
        sum(
            map(
                int,
                re.findall(
                    r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")
                )[:3],
            )
        )
        < 200
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_opens_from_disk_in_both_themes(browser, run, theme):
    with opened(browser, run / "report.html", color_scheme=theme) as page:
        assert page.title() == "digits_ldm · 2026-11-23_20-30-00", "nothing in a path is run"
        assert _is_dark(page) == (theme == "dark")
        for plot in ("roc", "histogram", "scatter", "stops", "seconds"):
            assert page.locator(f"#plot-{plot} .main-svg").count() > 0, plot
        text = page.inner_text("body")
        for shown in (
            "maps <b>&",
            "node1",
            "'a b.yaml'",
            "1 images could not be used",
            "All 47 images whose pictures were kept",
        ):
            assert shown in text, shown
        for is_dark in (theme == "light", theme == "dark"):
            page.click("#theme")
            assert _is_dark(page) == is_dark
            assert page.locator("#plot-roc .main-svg").count() > 0


def test_the_table_sorts_by_mouse_and_by_keyboard(browser, run):
    with opened(browser, run / "report.html") as page:
        heading = page.locator("#result-table th", has_text="AUROC")
        figures_ = "#result-table tbody tr"
        values = "rows => rows.map(r => parseFloat(r.cells[3].dataset.value))"
        heading.locator("button").click()
        found = page.eval_on_selector_all(figures_, values)
        assert found == sorted(found, reverse=True)
        assert heading.get_attribute("aria-sort") == "descending"
        heading.locator("button").focus()
        page.keyboard.press("Enter")
        found = page.eval_on_selector_all(figures_, values)
        assert found == sorted(found)
        page.locator("#result-table th", has_text="Data set").locator("button").click()
        assert column(page, 1) == sorted(column(page, 1))
        assert len(found) == 8


def test_the_table_shows_what_metrics_csv_holds(browser, run):
    with opened(browser, run / "report.html") as page:
        shown = {
            tuple(column(page, i)[n] for i in range(3)): column(page, 3)[n].split()[0]
            for n in range(8)
        }
    for line in lines_of(run / "metrics.csv"):
        assert (
            shown[line["group"], line["dataset"], line["score"]]
            == f"{100 * float(line['auroc']):.2f}"
        )


def test_the_gallery_filters_and_sorts(browser, run):
    frame, _ = read_scores(run)
    kept = frame[(frame["index"] < 12) & frame["error"].isna()]
    cut = {
        score: threshold(frame.loc[frame["dataset"] == "digits", score].to_numpy())
        for score in ("dists", "msp")
    }
    missed = {s: (kept["dataset"] == "digits") != (kept[s] >= cut[s]) for s in cut}

    def names(lines) -> set[str]:
        return {f"{d} {i}" for d, i in zip(lines["dataset"], lines["index"], strict=True)}

    with opened(browser, run / "report.html") as page:
        assert (
            page.inner_text("#gallery-count")
            == f"47 images, {missed['dists'].sum()} of them missed"
        )
        page.click("#more")
        assert set(cards_of(page)) == names(kept)
        page.select_option("#filter-dataset", label="maps <b>&")
        assert set(cards_of(page)) == names(kept[kept["dataset"] == "maps <b>&"])
        page.select_option("#filter-verdict", "missed")
        assert set(cards_of(page)) == names(
            kept[(kept["dataset"] == "maps <b>&") & missed["dists"]]
        )
        page.select_option("#gallery-score", label="msp")
        assert set(cards_of(page)) == names(kept[(kept["dataset"] == "maps <b>&") & missed["msp"]])
        page.select_option("#filter-dataset", "")
        page.select_option("#filter-verdict", "right")
        page.select_option("#filter-class", label="one")
        assert set(cards_of(page)) == names(kept[(kept["prediction"] == 1) & ~missed["msp"]])
        page.select_option("#filter-verdict", "")
        page.select_option("#filter-class", "")
        page.select_option("#filter-dataset", label="letters")
        for order, ascending in (("low", True), ("high", False)):
            page.select_option("#gallery-order", order)
            of_set = kept[kept["dataset"] == "letters"].sort_values(
                ["msp", "index"], ascending=[ascending, True]
            )
            assert cards_of(page) == [f"letters {i}" for i in of_set["index"]]
        of_photos = kept[kept["dataset"] == "photos"]
        missing = next(
            i
            for i in range(7)
            if not (missed["msp"][of_photos.index] & (of_photos["prediction"] == i)).any()
        )
        page.select_option("#filter-dataset", label="photos")
        page.select_option("#filter-verdict", "missed")
        page.select_option(
            "#filter-class", label=["zero", "one", "two", "three", "four", "five", "six"][missing]
        )
        assert cards_of(page) == []
        assert page.inner_text("#gallery-count") == "No image is like that."
        assert not page.locator("#more").is_visible()


def test_the_gallery_filters_by_classes_of_odd_names(browser, tmp_path):
    folder = plain_run(tmp_path / "run", {"letters": "near"}, pictures=6)
    names = ["two  spaces", "crane, bird", "crane, machine"]
    change_record(folder, class_names=names)
    with opened(browser, build(read_results(folder))[-1]) as page:
        for i, name in enumerate(names):
            page.select_option("#filter-class", label=name)
            assert set(cards_of(page)) == {
                f"{dataset} {index}" for dataset in ("ind", "letters") for index in (i, i + 3)
            }
            assert name in page.evaluate("document.querySelector('.card .bottom').textContent")


def test_the_most_confusing_images_come_first(browser, run):
    with opened(browser, run / "report.html") as page:
        worst = max(data_of(run / "report.html")["cards"], key=lambda card: card["confusion"][0])
        assert worst["confusion"][0] > 0
        assert cards_of(page)[0] == f"{worst['dataset']} {worst['index']}"


def test_an_image_is_enlarged_by_mouse_or_keyboard_and_arrows_lead_on(browser, run):
    with opened(browser, run / "report.html") as page:
        order = cards_of(page)
        page.locator("#cards button").nth(1).click()
        assert page.inner_text("#viewer-title").startswith(f"{order[1]}:")
        panels = page.eval_on_selector_all(
            "#viewer-panels span", "spans => spans.map(s => s.textContent)"
        )
        assert panels == ["input", "reconstruction", "unguided", "difference", "mask"]
        widths = page.eval_on_selector_all(
            "#viewer-panels img", "images => images.map(i => [i.naturalWidth, i.clientWidth])"
        )
        assert all(natural == 16 and shown > 100 for natural, shown in widths)
        assert page.locator("#viewer-scores tbody tr").count() == 2
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#viewer-title").startswith(f"{order[2]}:")
        page.keyboard.press("ArrowLeft")
        page.click("#previous")
        assert page.inner_text("#viewer-title").startswith(f"{order[0]}:")
        assert page.locator("#previous").is_disabled()
        page.keyboard.press("Escape")
        assert not page.locator("#viewer").is_visible()
        page.locator("#cards button").nth(3).focus()
        page.keyboard.press("Enter")
        assert page.inner_text("#viewer-title").startswith(f"{order[3]}:")
        for _ in range(len(data_of(run / "report.html")["cards"])):
            page.keyboard.press("ArrowRight")
        assert page.inner_text("#viewer-place") == "47 of 47", "through those not listed yet"
        page.keyboard.press("Escape")
        page.wait_for_function(
            "document.activeElement.dataset.place === '46'"
        )  # where one left off; closing is an event, to come


def test_the_keyboard_leads_on_from_the_first_and_the_last_image(browser, run):
    """A button that is pressed until it has no use any more keeps no focus; then the arrows would do nothing."""
    focus = "document.activeElement.id"
    with opened(browser, run / "report.html") as page:
        order = cards_of(page)
        page.locator("#cards button").nth(1).click()
        page.focus("#previous")
        page.keyboard.press("Enter")
        assert page.inner_text("#viewer-title").startswith(f"{order[0]}:")
        assert page.evaluate(focus) == "next"
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#viewer-title").startswith(f"{order[1]}:")
        for _ in range(44):
            page.keyboard.press("ArrowRight")
        page.focus("#next")
        page.keyboard.press("Enter")
        assert page.inner_text("#viewer-place") == "47 of 47"
        assert page.evaluate(focus) == "previous"
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#viewer-place") == "46 of 47"
        page.mouse.click(*_middle(page.locator("#viewer-panels img").first))
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#viewer-place") == "45 of 47", (
            "after a click on what takes no focus"
        )


def _middle(place) -> tuple[float, float]:
    box = place.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_another_score_draws_other_plots(browser, run):
    with opened(browser, run / "report.html") as page:
        axis = "#plot-histogram .xtitle"
        assert page.text_content(axis).startswith("dists")
        page.select_option("#plot-score", label="msp")
        assert page.text_content(axis).startswith("msp")
        assert not page.locator("#figure-scatter").is_visible(), "MSP against MSP"
        page.select_option("#plot-axis", "log")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser, run, theme):
    phone = {
        "viewport": {"width": 360, "height": 740},
        "color_scheme": theme,
        "device_scale_factor": 2,
        "has_touch": True,
    }
    with opened(browser, run / "report.html", **phone) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("#cards button").first.tap()
        assert page.evaluate("document.getElementById('viewer').scrollWidth") <= 360
        box = page.locator("#viewer-panels img").first.bounding_box()
        assert box["width"] > 120


def test_a_cascade_has_its_curve_in_table_page_csv_and_png(browser, tmp_path, capsys):
    combination = Combination.checked(
        Fusion(["dists", "msp"]), Cascade("msp", 0.25, "fusion"), ["dists"], ["msp"]
    )
    sets = ["digits", "calibration", "letters", "maps <b>&", "photos"]
    folder = make_run(
        tmp_path / "combined" / "now", datasets=sets, better=1.0, combination=combination
    )
    main([str(folder)])
    said = capsys.readouterr().out
    assert "Cascades of other budgets" in said
    lines = [line for line in lines_of(folder / "cascade.csv") if line["dataset"] == "photos"]
    assert [float(line["budget"]) for line in lines] == sorted({*BUDGETS, 0.25})
    assert {line["score"] for line in lines_of(folder / "metrics.csv")} == {
        "dists",
        "fusion",
        "cascade",
        "msp",
    }
    assert Image.open(folder / "cascade.png").width > 1000
    for width in (1280, 360):
        with opened(
            browser, folder / "report.html", viewport={"width": width, "height": 800}
        ) as page:
            for plot in ("auroc", "fpr95"):
                assert page.locator(f"#plot-cascade-{plot} .main-svg").count() > 0
            assert page.locator("#cascade tbody tr").count() == len(lines)
            assert page.locator("#cascade tr.primary").inner_text().split()[0] == "0.25"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert "calibration" not in page.inner_text("#results")


def test_the_comparison_opens_sorts_and_fits_a_phone(browser, pair, tmp_path):
    main([str(pair.a), str(pair.b), str(pair.a), "--out", str(tmp_path / "all.html")])
    with opened(browser, tmp_path / "all.html") as page:
        page.locator("#result-table th", has_text="AUROC").first.locator("button").click()
        found = page.eval_on_selector_all(
            "#result-table tbody tr", "rows => rows.map(r => parseFloat(r.cells[4].dataset.value))"
        )
        assert found == sorted(found, reverse=True)
        page.select_option("#plot-line", index=1)
        page.select_option("#plot-figure", "less-auroc")
        assert page.locator("#plot-intervals .main-svg").count() > 0
    with opened(
        browser, tmp_path / "all.html", viewport={"width": 360, "height": 740}, color_scheme="dark"
    ) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_runs_of_a_set_stay_apart_from_those_of_the_next_in_a_comparison_of_many(browser, tmp_path):
    runs = [read_results(plain_run(tmp_path / "run", {"letters": "near", "photos": "far"}))] * 12
    write_comparison_page(runs, compare(runs), tmp_path / "all.html")
    with opened(browser, tmp_path / "all.html") as page:
        for figure, count in (("auroc", 12), ("less-auroc", 11)):
            page.select_option("#plot-figure", figure)
            places = page.evaluate(
                "document.getElementById('plot-intervals').data.map(trace => trace.y)"
            )
            assert len(places) == count
            for n in range(2):
                assert all(abs(y[n] - n) < 0.45 for y in places)
            box = page.locator("#plot-intervals").bounding_box()
            assert box["height"] / 2 / count >= 10, "pixels a row"
