"""The file of decisions, as the command ``diffguard-pl score --out`` writes and resumes it."""

import csv
import json
import os
from pathlib import Path

import pytest
from helpers.images import saved
from helpers.score_command import ScoreCommand

from diffguard_pl.datamodules.digits import digits, photos
from diffguard_pl.deploy.decision_log import DecisionLog

NAMES = pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])


@pytest.fixture
def run(file, capsys) -> ScoreCommand:
    return ScoreCommand(file, capsys)


def read(file: Path) -> list[dict]:
    if file.suffix == ".csv":
        with file.open(newline="") as opened:
            return list(csv.DictReader(opened))
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


# Resuming


@NAMES
def test_a_log_is_resumed_after_its_last_complete_line(run, tmp_path, name):
    paths = saved(digits("test").images[:3], tmp_path, "digit")
    paths += saved(photos().images[:2], tmp_path, "photo")
    out = tmp_path / name
    options = ["--out", str(out), "--pictures", str(tmp_path / "pictures")]
    assert run(*paths[:3], *options).status == 0
    assert "--resume" in run(*paths, *options).message
    out.write_text(out.read_text() + paths[3][:10])  # a line that was cut off
    assert run(*paths, *options, "--resume").status == 0
    lines = read(out)
    assert [line["path"] for line in lines] == paths
    assert [line["decision"] for line in lines[3:]] == ["reject", "reject"]
    assert len({line["picture"] for line in lines}) == 5
    assert all(Path(line["picture"]).is_file() for line in lines)


@NAMES
def test_earlier_lines_count(run, tmp_path, name):
    strange = saved(photos().images[:1], tmp_path, "photo")
    options = ["--out", str(tmp_path / name), "--fail-on-ood"]
    assert run(*strange, *options).status == 4
    scored = run(*strange, *options, "--resume")
    assert scored.status == 4
    assert "0 accepted, 1 rejected; 1 of these" in scored.message

    options = ["--out", str(tmp_path / f"missing_{name}"), "--fail-on-ood"]
    known = saved(digits("test").images[:1], tmp_path, "digit")
    assert run("missing.png", *options).status == 3
    scored = run("missing.png", *known, *options, "--resume")
    assert scored.status == 3
    assert "1 accepted, 0 rejected, 1 could not be read; 1 of these" in scored.message


def test_a_line_that_was_cut_off_within_a_name_is_dropped(run, tmp_path):
    paths = saved(digits("test").images[:2], tmp_path, "digit\n")
    out = tmp_path / "out.csv"
    run(*paths, "--out", str(out))
    whole = out.read_bytes()
    for end in range(whole.index(b"digit"), len(whole), 7):
        out.write_bytes(whole[:end])
        log = DecisionLog(out, resume=True)
        assert log.paths <= set(paths)
        assert whole[: log.complete_bytes].count(b'"') % 2 == 0
        log.close()
    out.write_bytes(whole[: whole.rindex(b"digit\n") + 6])
    run(*paths, "--out", str(out), "--resume")
    assert [line["path"] for line in read(out)] == paths


@NAMES
def test_a_path_may_contain_any_bytes(run, tmp_path, name):
    stems = [b"a\nb", b"a\rb", "a\x85b".encode(), "a\u2028b".encode(), b"a\xffb", b'a",b']
    stems += [b'\n\n"', b"a"]
    paths = [os.fsdecode(bytes(tmp_path) + b"/" + stem + b".png") for stem in stems]
    (source,) = saved(digits("test").images[:1], tmp_path, "digit")
    for path in paths:
        Path(path).write_bytes(Path(source).read_bytes())
    out = tmp_path / name
    options = ["--out", str(out), "--pictures", str(tmp_path / "pictures")]
    assert run(*paths[:-1], *options).status == 0
    before = out.read_bytes()
    scored = run(*paths, *options, "--resume")
    assert scored.status == 0
    assert "8 accepted, 0 rejected; 7 of these" in scored.message
    assert out.read_bytes().startswith(before)
    lines = read(out)
    escaped = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
    assert [line["path"] for line in lines] == escaped
    assert len({line["picture"] for line in lines}) == 8
    assert len(list((tmp_path / "pictures").iterdir())) == 8


def test_a_name_in_a_csv_file_is_no_formula_and_is_resumed(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (source,) = saved(digits("test").images[:1], tmp_path, "digit")
    names = ["=1+1.png", "@a.png", "+a.png", "\t=b.png", "'=c.png", "'d'.png"]
    for name in names:
        Path(name).write_bytes(Path(source).read_bytes())
    assert run(*names[:4], "missing.png", "--out", "out.csv").status == 3
    before = Path("out.csv").read_bytes()
    scored = run(*names, "missing.png", "--out", "out.csv", "--resume")
    assert "6 accepted, 0 rejected, 1 could not be read; 5 of these" in scored.message
    assert Path("out.csv").read_bytes().startswith(before)
    lines = read(Path("out.csv"))
    expected = ["'=1+1.png", "'@a.png", "'+a.png", "'\t=b.png", "missing.png", "''=c.png"]
    assert [line["path"] for line in lines] == [*expected, "'d'.png"]
    assert len({float(line["score"]) for line in lines if line["score"]}) == 1


# Files that are not to be changed


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
@pytest.mark.parametrize(
    "content",
    [
        b"no line end",
        b"mine\nmine too",
        b"\xff\xfe\x00 binary",
        b'{"path": "a.png"}\n',
        b'{"path": "a.png", "decision": "accept"}\n{"pa',
        b"path,decision\na.png,accept\nb",
        b"[" * 100_000 + b"\n",
    ],
    ids=range(7),
)
def test_a_file_that_is_not_a_decision_log_is_not_changed(tmp_path, name, content, run):
    (tmp_path / name).write_bytes(content)
    images = saved(digits("test").images[:1], tmp_path, "digit")
    scored = run(*images, "--out", str(tmp_path / name), "--resume")
    assert scored.status == 1
    assert "choose another name" in scored.message
    assert "\n" not in scored.message
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_only_a_regular_file_is_written(run, tmp_path, resume):
    images = saved(digits("test").images[:1], tmp_path, "digit")
    for out in ("/dev/full", str(tmp_path)):
        assert "regular file" in run(*images, "--out", out, *resume).message


def test_a_run_that_cannot_begin_leaves_no_file(run, tmp_path):
    images = saved(digits("test").images[:1], tmp_path, "digit")
    run(*images, "--out", str(tmp_path / "out.jsonl"), "--device", "nonsense")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_log_keeps_to_one_detector_and_tpr(run, file, tmp_path):
    images = saved(digits("test").images[:2], tmp_path, "digit")
    out = tmp_path / "out.jsonl"
    resume = [*images, "--out", str(out), "--resume"]
    assert run(images[0], "--out", str(out)).status == 0
    before = out.read_bytes()
    assert "tpr=0.95, not 0.9" in run(*resume, "--tpr", "0.9").message
    (tmp_path / "other.json").write_text(file.read_text() + "\n")
    other = run(*resume, "--detector", str(tmp_path / "other.json"))
    assert "another detector" in other.message
    assert out.read_bytes() == before
    assert run(*resume, "--tpr", "0.95").status == 0


def test_one_process_at_a_time_writes_a_log(run, tmp_path):
    images = saved(digits("test").images[:1], tmp_path, "digit")
    out = tmp_path / "out.jsonl"
    first = DecisionLog(out, resume=False)
    for options in ([], ["--resume"]):
        message = run(*images, "--out", str(out), *options).message
        assert f"in use by process {os.getpid()} on" in message
        assert "wait" in message
    assert out.exists()
    first.close()
    assert run(*images, "--out", str(out)).status == 0
    assert {path.name for path in tmp_path.iterdir() if "out" in path.name} == {
        "out.jsonl",
        ".out.jsonl.detector",
    }
