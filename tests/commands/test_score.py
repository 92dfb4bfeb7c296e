"""The command that accepts or rejects image files."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.images import saved
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from diffguard_pl import Detector
from diffguard_pl.commands import score
from diffguard_pl.datamodules.digits import digits, photos
from diffguard_pl.deploy.decision_log import DecisionLog


def interruptible() -> None:
    """In a child: hear Ctrl-C, which what a script has started in the background ignores, and all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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
        "error": "not an image that Pillow can read",
    }
    assert by_path[str(tmp_path / "missing.png")]["error"] == "file not found"
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
    paths = saved(digits("test").images[:3], tmp_path, "digit") + saved(
        photos().images[:2], tmp_path, "photo"
    )
    out = tmp_path / "scores.csv"
    assert asked(*paths[:3], "--out", str(out), "--pictures", str(tmp_path / "pictures"))[0] == 0
    assert "exists already; --resume" in asked(*paths, "--out", str(out))[2]
    out.write_text(out.read_text() + paths[3][:10])  # cut off in the middle of a line
    assert (
        asked(*paths, "--out", str(out), "--resume", "--pictures", str(tmp_path / "pictures"))[0]
        == 0
    )
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
    assert (
        "is not a decision log"
        in asked(*paths, "--out", str(tmp_path / "else.jsonl"), "--resume")[2]
    )


def test_paths_from_standard_input(asked, tmp_path, monkeypatch):
    paths = saved(digits("test").images[:2], tmp_path, "digit")
    given = tmp_path / "paths"
    given.write_bytes("\r\n".join([paths[0], *paths]).encode())
    with given.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert [line["path"] for line in asked("-")[1]] == paths
    given.write_bytes(bytes(1 << 21))
    for source, said in (
        (given, "a line of more than 1,048,576 bytes"),
        (Path(os.devnull), "there are no images to score"),
    ):
        with source.open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            status, lines, message = asked("-")
        assert (status, lines, said in message) == (1, [], True)


def test_paths_that_come_one_by_one_are_decided_one_by_one(file, tmp_path):
    paths = saved(digits("test").images[:4], tmp_path, "digit")
    command = [
        sys.executable,
        "-m",
        "diffguard_pl",
        "score",
        "--detector",
        str(file),
        paths[0],
        "-",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as running:
        assert json.loads(running.stdout.readline())["path"] == paths[0]
        for path in paths[1:]:
            running.stdin.write(f"{paths[0]}\n{path}\n".encode())
            assert json.loads(running.stdout.readline())["path"] == path
        running.stdin.close()
        assert running.wait(timeout=60) == 0
        assert b"0 rejected" in running.stderr.read()
        assert not running.stdout.read()


def test_a_steady_stream_of_paths_does_not_hold_them_up(monkeypatch):
    source, target = os.pipe()

    def write() -> None:
        for i in range(60):  # the next one always comes before the wait for it is over
            os.write(target, f"{i}.png\n".encode())
            time.sleep(0.01)
        os.close(target)

    with os.fdopen(source) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        writer = threading.Thread(target=write)
        writer.start()
        parts = list(score.arriving())
        writer.join()
    assert [line for part in parts for line in part] == [f"{i}.png".encode() for i in range(60)]
    assert len(parts) > 3


def test_a_folder_is_called_as_it_is(asked, tmp_path, monkeypatch):
    saved(digits("test").images[:1], tmp_path / "~nobody", "digit")
    monkeypatch.chdir(tmp_path)
    assert [line["path"] for line in asked("~nobody")[1]] == ["~nobody/digit0.png"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch-size", "0"], "expected at least 1 and 0"),
        (["--resume"], "--resume: goes on with the file of --out"),
        (["--device", "nonsense"], "nonsense"),
        (["--tpr", "2"], "tpr=2.0: expected a share"),
        (["--out", "/proc/nothing/out.jsonl"], "cannot be written"),
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
    command = [
        sys.executable,
        "-m",
        "diffguard_pl",
        "score",
        "--detector",
        str(file),
        str(tmp_path / "in"),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        [*command, "--batch-size", "4", "--slots", "8", "--workers", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=interruptible,
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


# the file is gone on with only if it is ours, and nothing in it is changed before that is known


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
)
def test_a_file_that_is_something_else_stays_as_it_is(asked, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    images = saved(digits("test").images[:1], tmp_path, "digit")
    status, _, said = asked(*images, "--out", str(tmp_path / name), "--resume")
    assert (status, "\n" in said, "choose another name" in said) == (1, False, True)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_only_a_regular_file_is_written_to(asked, tmp_path, resume):
    images = saved(digits("test").images[:1], tmp_path, "digit")
    for out in ("/dev/full", str(tmp_path)):
        assert "regular file" in asked(*images, "--out", out, *resume)[2]


def test_what_could_not_be_begun_leaves_no_file(asked, tmp_path):
    images = saved(digits("test").images[:1], tmp_path, "digit")
    asked(*images, "--out", str(tmp_path / "out.jsonl"), "--device", "nonsense")
    assert not (tmp_path / "out.jsonl").exists()


def test_lines_of_another_detector_are_not_added(asked, file, tmp_path):
    images = saved(digits("test").images[:2], tmp_path, "digit")
    out = tmp_path / "out.jsonl"
    assert asked(images[0], "--out", str(out))[0] == 0
    before = out.read_bytes()
    assert (
        "was started with tpr=0.95, not 0.9; choose"
        in asked(*images, "--out", str(out), "--resume", "--tpr", "0.9")[2]
    )
    (tmp_path / "other.json").write_text(file.read_text() + "\n")
    other = ["--detector", str(tmp_path / "other.json")]
    assert (
        "was started with another detector"
        in asked(*images, "--out", str(out), "--resume", *other)[2]
    )
    assert out.read_bytes() == before
    assert asked(*images, "--out", str(out), "--resume", "--tpr", "0.95")[0] == 0


def test_one_process_at_a_time_writes_a_file(asked, tmp_path):
    images = saved(digits("test").images[:1], tmp_path, "digit")
    out = tmp_path / "out.jsonl"
    first = DecisionLog(out, resume=False)
    for arguments in ([], ["--resume"]):
        assert (
            "another process is writing to it" in asked(*images, "--out", str(out), *arguments)[2]
        )
    assert out.exists()
    first.close()
    assert asked(*images, "--out", str(out))[0] == 0


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_names_may_be_anything(asked, tmp_path, name):
    strange = [
        b"a\nb",
        b"a\rb",
        "a\x85b".encode(),
        "a\u2028b".encode(),
        b"a\xffb",
        b'a",b',
        b'\n\n"',
        b"a",
    ]
    paths = [os.fsdecode(bytes(tmp_path) + b"/" + stem + b".png") for stem in strange]
    (source,) = saved(digits("test").images[:1], tmp_path, "digit")
    for path in paths:
        Path(path).write_bytes(Path(source).read_bytes())
    out = tmp_path / name
    options = ["--out", str(out), "--pictures", str(tmp_path / "pictures")]
    assert asked(*paths[:-1], *options)[0] == 0
    whole = out.read_bytes()
    status, _, said = asked(*paths, *options, "--resume")
    assert (status, "8 accepted, 0 rejected; 7 of them before" in said) == (0, True)
    assert out.read_bytes().startswith(whole)
    read = (
        csv_lines(out)
        if name.endswith("csv")
        else [json.loads(line) for line in out.read_text().split("\n")[:-1]]
    )
    assert [line["path"] for line in read] == [
        path.encode("utf-8", "backslashreplace").decode() for path in paths
    ]
    assert (
        len({line["picture"] for line in read}) == len(list((tmp_path / "pictures").iterdir())) == 8
    )


def test_a_line_that_was_cut_off_within_a_name_is_taken_out(asked, tmp_path):
    paths = saved(digits("test").images[:2], tmp_path, "digit\n")
    out = tmp_path / "out.csv"
    asked(*paths, "--out", str(out))
    whole = out.read_bytes()
    for end in range(whole.index(b"digit"), len(whole), 7):
        out.write_bytes(whole[:end])
        lines = DecisionLog(out, resume=True)
        assert lines.paths <= set(paths)
        assert whole[: lines.complete_bytes].count(b'"') % 2 == 0
        lines.close()
    out.write_bytes(whole[: whole.rindex(b"digit\n") + 6])
    asked(*paths, "--out", str(out), "--resume")
    assert [line["path"] for line in csv_lines(out)] == paths


def csv_lines(file: Path) -> list[dict]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_what_was_decided_before_counts(asked, tmp_path, name):
    strange = saved(photos().images[:1], tmp_path, "photo")
    options = ["--out", str(tmp_path / name), "--fail-on-ood"]
    assert asked(*strange, *options)[0] == 4
    status, _, said = asked(*strange, *options, "--resume")
    assert (status, said.strip()) == (4, "0 accepted, 1 rejected; 1 of them before")
    options[1] = str(tmp_path / f"missing_{name}")
    assert asked("missing.png", *options)[0] == 3
    status, _, said = asked(
        "missing.png", *saved(digits("test").images[:1], tmp_path, "digit"), *options, "--resume"
    )
    assert (status, said.strip()) == (
        3,
        "1 accepted, 0 rejected, 1 could not be read; 1 of them before",
    )


def test_pictures_of_earlier_sessions_are_kept(asked, tmp_path):
    paths = [
        *saved(digits("test").images[:2], tmp_path / "a", "digit"),
        *saved(digits("test").images[2:4], tmp_path / "b", "digit"),
    ]
    options = ["--out", str(tmp_path / "out.jsonl"), "--pictures", str(tmp_path / "pictures")]
    asked(*paths[:2], *options)
    before = {picture: picture.read_bytes() for picture in (tmp_path / "pictures").iterdir()}
    asked(*paths[2:], *options, "--resume")
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    assert all(picture.read_bytes() == content for picture, content in before.items())


def test_pictures_that_cannot_be_written_do_not_end_the_run(asked, tmp_path, monkeypatch):
    paths = saved(digits("test").images[:3], tmp_path, "\U0001f600" * 60)
    lines = asked(*paths, "--pictures", str(tmp_path / "pictures"))[1]
    assert all(Path(line["picture"]).is_file() for line in lines)
    monkeypatch.setattr(score, "_picture_name", lambda path: "x" * 300)
    status, lines, said = asked(*paths, "--pictures", str(tmp_path / "pictures"))
    assert (status, len(lines), any("picture" in line for line in lines)) == (0, 3, False)
    assert said.count("the picture could not be written (File name too long)") == 1


def test_a_score_that_is_no_number_is_null(asked, tmp_path, monkeypatch):
    predicted = Detector.decide

    def decide(self, batches):
        for batch, decisions in predicted(self, batches):
            nan = torch.tensor([float("nan"), float("-inf")], dtype=torch.float64)
            yield batch, replace(decisions, scores=nan, p_values=nan, accepted=nan > 0)

    monkeypatch.setattr(Detector, "decide", decide)
    images = saved(digits("test").images[:2], tmp_path, "digit")
    first, second = asked(*images)[1]
    assert (first["decision"], first["score"], first["p_value"]) == ("reject", None, None)
    assert first["note"] == "its score is not a number"
    assert (second["decision"], second["score"], second["note"]) == (
        "reject",
        None,
        "its score is -inf",
    )


# the command line


def test_images_that_are_no_files_are_told_among_the_others(asked, tmp_path):
    images = saved(digits("test").images[:1], tmp_path, "digit")
    (tmp_path / "empty").mkdir()
    status, lines, _ = asked(str(tmp_path / "empty"), "a" * 5000, *images, "b" * 300)
    assert status == 3
    errors = [line.get("error") for line in lines]
    assert errors[2] is None
    assert "no images in it" in errors[0]
    assert all("File name too long" in errors[i] for i in (1, 3))


@pytest.mark.parametrize("option", ["--pictures", "--out"])
def test_what_cannot_be_written_is_said_before_the_detector_is_loaded(asked, tmp_path, option):
    (tmp_path / "file").write_text("")
    said = asked(
        "six.png", "--detector", "nothere.json", option, str(tmp_path / "file" / "within")
    )[2]
    assert str(tmp_path / "file" / "within") in said
    assert "nothere" not in said
    assert "--resume" not in said


def test_a_closed_standard_input(file):
    command = f"{sys.executable} -m diffguard_pl score --detector {file} - <&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (
        1,
        "error: -: the standard input is closed; give it the paths of images, one a line\n",
    )


def test_help_and_mistakes_need_no_torch():
    code = "import sys; from diffguard_pl import score; score._parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("signum", "wait"),
    [(signal.SIGTERM, "lines"), (signal.SIGINT, "lines"), (signal.SIGINT, "imports")],
)
def test_a_signal_to_the_whole_group_is_one_line(file, tmp_path, signum, wait):
    (tmp_path / "in").mkdir()
    to_pil_image(digits("test").images[0]).resize((1500, 1500)).save(
        tmp_path / "in" / "0.png"
    )  # so that workers are at it
    for i in range(1, 400):
        (tmp_path / "in" / f"{i}.png").symlink_to("0.png")
    out = tmp_path / "out.jsonl"
    command = [
        sys.executable,
        "-m",
        "diffguard_pl",
        "score",
        "--detector",
        str(file),
        str(tmp_path / "in"),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=interruptible,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while (
        not (out.exists() and (wait == "imports" or out.read_text().count("\n") > 8))
        and time.monotonic() < until
    ):
        time.sleep(0.05)
    os.killpg(process.pid, signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, said
    assert said == f"stopped by {signal.Signals(signum).name}; --resume goes on with {out}\n"
