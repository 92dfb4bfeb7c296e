"""The command that accepts or rejects image files."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import saved
from PIL import Image

from diffguard_pl import score
from diffguard_pl.datamodules.digits import digits, photos


@pytest.fixture
def asked(file, capsys):
    """Runs the command; returns its exit status, its lines and what it said."""

    def ask(*args: str) -> tuple[int, list[dict], str]:
        capsys.readouterr()
        try:
            score.main(["--detector", str(file), *args])
            status = 0
        except SystemExit as exit_:
            if isinstance(exit_.code, str):
                return 1, [], exit_.code
            status = exit_.code or 0
        said = capsys.readouterr()
        return status, [json.loads(line) for line in said.out.splitlines()], said.err

    return ask


def test_the_command_decides_on_files_and_folders(asked, tmp_path):
    known = saved(digits("test").images[:5], tmp_path / "in" / "known", "digit")
    strange = saved(photos().images[:5], tmp_path / "in", "photo")
    (tmp_path / "in" / "broken.jpg").write_text("no image")
    status, lines, said = asked(str(tmp_path / "in"), known[0], str(tmp_path / "missing.png"))
    assert status == 3
    by_path = {line["path"]: line for line in lines}
    assert len(lines) == len(by_path) == 12
    assert [line["path"] for line in lines] == [
        str(tmp_path / "in" / "broken.jpg"),
        *known,
        *strange,
        str(tmp_path / "missing.png"),
    ]
    assert by_path[str(tmp_path / "in" / "broken.jpg")] == {
        "path": str(tmp_path / "in" / "broken.jpg"),
        "error": "not an image that PIL can read",
    }
    assert by_path[str(tmp_path / "missing.png")]["error"] == "no such file"
    assert all(by_path[path]["decision"] == "reject" for path in strange)
    assert sum(by_path[path]["decision"] == "accept" for path in known) >= 4
    first = by_path[known[0]]
    assert set(first) == {"path", "decision", "label", "class", "score", "p_value", "diffused"}
    assert first["class"] == "6"
    assert "2 could not be read" in said


def test_the_exit_status_tells_of_rejected_images(asked, tmp_path):
    known = saved(digits("test").images[1:3], tmp_path, "digit")
    strange = saved(photos().images[:1], tmp_path, "photo")
    assert asked(*known, "--fail-on-ood")[0] == 0
    assert asked(*known, *strange, "--fail-on-ood")[0] == 4
    assert asked(*known, *strange)[0] == 0
    assert asked(*strange, str(tmp_path / "missing.png"), "--fail-on-ood")[0] == 4


def test_csv_pictures_and_going_on(asked, tmp_path):
    paths = saved(digits("test").images[:3], tmp_path, "digit") + saved(photos().images[:2], tmp_path, "photo")
    out = tmp_path / "scores.csv"
    assert asked(*paths[:3], "--out", str(out), "--pictures", str(tmp_path / "pictures"))[0] == 0
    assert "is there already; --resume adds to it" in asked(*paths, "--out", str(out))[2]
    out.write_text(out.read_text() + paths[3][:10])  # cut off in the middle of a line
    assert asked(*paths, "--out", str(out), "--resume", "--pictures", str(tmp_path / "pictures"))[0] == 0
    lines = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [line["path"] for line in lines] == paths
    assert [line["decision"] for line in lines[3:]] == ["reject", "reject"]
    assert len({line["picture"] for line in lines[:3]}) == 3
    drawn = [Image.open(line["picture"]) for line in lines]
    assert all(picture.width > 3 * 224 for picture in drawn)


def test_json_lines_go_on_too(asked, tmp_path):
    paths = saved(digits("test").images[:3], tmp_path, "digit")
    out = tmp_path / "scores.jsonl"
    asked(*paths[:2], "--out", str(out))
    asked(*paths, "--out", str(out), "--resume")
    assert [json.loads(line)["path"] for line in out.read_text().splitlines()] == paths
    (tmp_path / "else.jsonl").write_text("hello\n")
    assert "holds something else than scores" in asked(*paths, "--out", str(tmp_path / "else.jsonl"), "--resume")[2]


def test_paths_from_standard_input(asked, tmp_path, monkeypatch):
    paths = saved(digits("test").images[:2], tmp_path, "digit")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(paths) + "\n"))
    assert [line["path"] for line in asked("-")[1]] == paths


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch-size", "0"], "expected at least 1 and 0"),
        (["--device", "nonsense"], "nonsense"),
        (["--tpr", "2"], "tpr=2.0: expected a share"),
        (["--out", "/proc/nothing/out.jsonl"], "could not be written"),
    ],
)
def test_mistakes_are_said_in_one_line(asked, tmp_path, args, said):
    status, _, message = asked(*saved(digits("test").images[:1], tmp_path, "digit"), *args)
    assert (status, said in message, "\n" in message.strip()) == (1, True, False)


def test_an_empty_folder(asked, tmp_path):
    assert "no images in it" in asked(str(tmp_path))[2]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_keeps_what_is_done_and_says_how_to_go_on(file, tmp_path, signum):
    paths = saved(digits("test").images[:200], tmp_path / "in", "digit")
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "diffguard_pl.score", "--detector", str(file), str(tmp_path / "in"), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--batch-size", "4", "--slots", "8", "--workers", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 120
    while not (out.exists() and out.read_text().count("\n") > 8) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, said
    assert f"stopped by {signal.Signals(signum).name}; --resume goes on with {out}" in said
    lines = out.read_text().splitlines()
    assert 8 < len(lines) < len(paths)
