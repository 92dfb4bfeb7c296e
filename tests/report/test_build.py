"""Files of a run's report."""

import shutil

import pytest
from helpers.report_runs import make_plain_run, make_run

from diffguard_pl.commands.report import main
from diffguard_pl.report.build import build, grid_pictures
from diffguard_pl.report.results import read_results
from diffguard_pl.runs.store import PartWriter, part_files, read_scores


def test_a_report_is_rebuilt_from_scores_and_pictures_alone(built_run, tmp_path, capsys):
    bare = tmp_path / "bare"
    for name in ("scores", "pictures"):
        shutil.copytree(built_run / name, bare / name)
    main([str(bare)])
    for name in ("metrics.csv", "pictures.png", "plots.png", "report.html"):
        assert (bare / name).exists(), name
    assert (bare / "metrics.csv").read_bytes() == (built_run / "metrics.csv").read_bytes()
    assert capsys.readouterr().out.split()[-2:] == ["report:", str(bare / "report.html")]


def test_the_order_and_number_of_parts_do_not_matter(built_run, tmp_path):
    other = tmp_path / "other"
    frame, header = read_scores(built_run)
    shuffled = frame.sample(frac=1, random_state=0).astype(object)
    results = shuffled.where(shuffled.notna(), None).to_dict("records")
    for rank in (1, 0):
        writer = PartWriter(other, header, f"9-{rank}")
        writer.add(results[rank::2])
        writer.flush()
    build(read_results(other))
    assert (other / "metrics.csv").read_bytes() == (built_run / "metrics.csv").read_bytes()


def test_a_run_without_pictures_has_a_page_without_a_gallery(tmp_path):
    written = build(read_results(make_run(tmp_path / "run", pictures=0)))
    assert [path.name for path in written] == ["metrics.csv", "plots.png", "report.html"]
    assert 'id="gallery"' not in written[-1].read_text()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda run: shutil.rmtree(run), "run"),
        (lambda run: shutil.rmtree(run / "scores"), "run"),
        (lambda run: part_files(run)[1].write_bytes(b"PAR1 half"), "part-0-0-000001.parquet"),
        (lambda run: part_files(run)[0].unlink(), "digits"),
    ],
)
def test_a_folder_without_a_complete_run_is_refused_in_one_line(tmp_path, damage, problem):
    run = make_run(tmp_path / "run", pictures=0)
    damage(run)
    with pytest.raises(SystemExit) as stopped:
        main([str(run)])
    message = str(stopped.value)
    assert message.startswith("error: ")
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "record", [b"[" * 100_000, b"\xff", b"[]", b'{"sessions": [{"command": ["\\ud800"]}, 1]}']
)
def test_a_damaged_record_costs_facts_and_not_the_report(tmp_path, record, capsys):
    run = make_plain_run(tmp_path / "run", {"far": "far"}, count=3)
    (run / "run.json").write_bytes(record)
    main([str(run)])
    assert (run / "report.html").exists()


def test_images_without_a_score_are_neither_most_nor_least_mismatched(tmp_path):
    run = read_results(make_plain_run(tmp_path / "run", {"nan": "near"}, pictures=12))
    strips = grid_pictures(run)["nan (near), 12 images"]
    captions = {
        kind: [picture.caption.split()[-1] for picture in pictures]
        for kind, pictures in strips.items()
    }
    scores = sorted(run.table.of(1)[2:, 0])
    assert captions["most mismatched"] == [f"{value:.3f}" for value in scores[:6]]
    assert captions["least mismatched"] == [f"{value:.3f}" for value in scores[:-7:-1]]
