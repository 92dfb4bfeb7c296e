"""The command ``diffguard-pl score``."""

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.images import saved
from helpers.score_command import ScoreCommand, interrupt_after, start_score
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from diffguard_pl import Detector
from diffguard_pl.commands import score
from diffguard_pl.datamodules.digits import digits, photos


@pytest.fixture
def run(file, capsys) -> ScoreCommand:
    return ScoreCommand(file, capsys)


# Decisions


def test_files_and_folders_are_decided_in_the_given_order_and_once(run, tmp_path):
    known = saved(digits("test").images[:5], tmp_path / "in" / "known", "digit")
    strange = saved(photos().images[:5], tmp_path / "in", "photo")
    broken, missing = str(tmp_path / "in" / "broken.jpg"), str(tmp_path / "missing.png")
    Path(broken).write_text("no image")
    scored = run(str(tmp_path / "in"), known[0], missing)
    assert scored.status == 3
    assert "2 could not be read" in scored.message
    assert [line["path"] for line in scored.lines] == [broken, *known, *strange, missing]
    by_path = {line["path"]: line for line in scored.lines}
    assert set(by_path[broken]) == {"path", "error"}
    assert "not an image" in by_path[broken]["error"]
    assert "not found" in by_path[missing]["error"]
    assert all(by_path[path]["decision"] == "reject" for path in strange)
    assert sum(by_path[path]["decision"] == "accept" for path in known) >= 4
    first = by_path[known[0]]
    assert set(first) == {"path", "decision", "label", "class", "score", "p_value", "diffused"}
    assert first["class"] == "6"


def test_the_exit_status_reports_rejected_images_before_unreadable_ones(run, tmp_path):
    known = saved(digits("test").images[1:3], tmp_path, "digit")
    strange = saved(photos().images[:1], tmp_path, "photo")
    missing = str(tmp_path / "missing.png")
    assert run(*known, "--fail-on-ood").status == 0
    assert run(*known, *strange, "--fail-on-ood").status == 4
    assert run(*known, *strange).status == 0
    assert run(*known, missing, "--fail-on-ood").status == 3
    assert run(*strange, missing, "--fail-on-ood").status == 4


def test_a_guarded_folder_passes_no_image_that_was_not_judged(run, tmp_path):
    saved(digits("test").images[1:3], tmp_path, "digit")
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    scored = run(str(tmp_path), "--fail-on-ood")
    assert scored.status == 3
    assert "pip install pillow-heif" in scored.lines[-1]["error"]
    assert f"passed over (not images, or hidden folders): {tmp_path}/notes.txt" in scored.message
    assert "2 accepted, 0 rejected, 1 could not be read, 1 other files passed" in scored.message

    to_pil_image(photos().images[0]).save(tmp_path / "unknown.jfif", "PNG")
    assert run(str(tmp_path), "--fail-on-ood").status == 4


def test_a_score_that_is_not_finite_becomes_null_with_a_note(run, tmp_path, monkeypatch):
    original = Detector.decide

    def decide(self, batches):
        for batch, decisions in original(self, batches):
            scores = torch.tensor([float("nan"), float("-inf")], dtype=torch.float64)
            yield batch, replace(decisions, scores=scores, p_values=scores, accepted=scores > 0)

    monkeypatch.setattr(Detector, "decide", decide)
    first, second = run(*saved(digits("test").images[:2], tmp_path, "digit")).lines
    for line in (first, second):
        assert (line["decision"], line["score"], line["p_value"]) == ("reject", None, None)
    assert "not a number" in first["note"]
    assert "-inf" in second["note"]


def test_images_that_cannot_be_files_are_reported_among_the_others(run, tmp_path):
    images = saved(digits("test").images[:1], tmp_path, "digit")
    (tmp_path / "empty").mkdir()
    scored = run(str(tmp_path / "empty"), "a" * 5000, *images, "b" * 300)
    assert scored.status == 3
    errors = [line.get("error") for line in scored.lines]
    assert errors[2] is None
    assert "no images" in errors[0]
    assert all("name too long" in errors[i] for i in (1, 3))


# Mistakes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--workers", "-1"], "--workers -1: must be at least 0"),
        (["--resume"], "--resume: "),
        (["--device", "nonsense"], "nonsense"),
        (["--tpr", "2"], "tpr"),
        (["--out", "/proc/nothing/out.jsonl"], "/proc/nothing/out.jsonl: cannot be written"),
    ],
)
def test_a_mistake_is_reported_in_one_line(run, tmp_path, args, message):
    scored = run(*saved(digits("test").images[:1], tmp_path, "digit"), *args)
    assert scored.status == 1
    assert message in scored.message
    assert "\n" not in scored.message.strip()


@pytest.mark.parametrize("option", ["--pictures", "--out"])
def test_an_output_is_checked_before_the_detector_is_loaded(run, tmp_path, option):
    (tmp_path / "file").write_text("")
    target = str(tmp_path / "file" / "within")
    message = run("six.png", "--detector", "nothere.json", option, target).message
    assert target in message
    assert "nothere" not in message
    assert "--resume" not in message


# Pictures


def test_pictures_of_earlier_runs_are_kept(run, tmp_path):
    paths = [
        *saved(digits("test").images[:2], tmp_path / "a", "digit"),
        *saved(digits("test").images[2:4], tmp_path / "b", "digit"),
    ]
    folder = tmp_path / "pictures"
    options = ["--out", str(tmp_path / "out.jsonl"), "--pictures", str(folder)]
    run(*paths[:2], *options)
    before = {picture: picture.read_bytes() for picture in folder.iterdir()}
    run(*paths[2:], *options, "--resume")
    assert len(list(folder.iterdir())) == 4
    assert all(picture.read_bytes() == content for picture, content in before.items())
    assert all(Image.open(picture).width > 3 * 224 for picture in folder.iterdir())


def test_a_picture_that_cannot_be_written_does_not_end_the_run(run, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    paths = saved(digits("test").images[:3], tmp_path, "\U0001f600" * 60)
    lines = run(*paths, "--pictures", str(folder)).lines
    assert all(Path(line["picture"]).is_file() for line in lines)
    monkeypatch.setattr(score, "picture_name", lambda path: "x" * 300)
    scored = run(*paths, "--pictures", str(folder))
    assert (scored.status, len(scored.lines)) == (0, 3)
    assert not any("picture" in line for line in scored.lines)
    assert scored.message.count("name too long") == 1


# Standard input


def test_paths_on_standard_input_are_decided_as_they_arrive(file, tmp_path):
    paths = saved(digits("test").images[:4], tmp_path, "digit")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with start_score(file, paths[0], "-", **pipes) as process:
        assert json.loads(process.stdout.readline())["path"] == paths[0]
        for path in paths[1:]:
            process.stdin.write(f"{paths[0]}\n{path}\n".encode())
            assert json.loads(process.stdout.readline())["path"] == path
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        assert b"0 rejected" in process.stderr.read()
        assert not process.stdout.read()


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(file, tmp_path):
    paths = saved(digits("test").images[:3], tmp_path, "digit")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with start_score(file, paths[0], "-", **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(f"{paths[1]}\n{paths[2]}\n".encode())
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        assert not process.stderr.read()


# Interruption


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("signum", "lines"),
    [(signal.SIGTERM, 8), (signal.SIGINT, 8), (signal.SIGINT, 0)],
    ids=["SIGTERM", "SIGINT", "SIGINT while importing"],
)
def test_interrupted_it_keeps_its_decisions_and_reports_how_to_resume(
    file, tmp_path, signum, lines
):
    (tmp_path / "in").mkdir()
    # Large images, so that the workers are reading when the signal arrives.
    large = to_pil_image(digits("test").images[0]).resize((1000, 1000))
    large.save(tmp_path / "in" / "0.png")
    for i in range(1, 400):
        (tmp_path / "in" / f"{i}.png").symlink_to("0.png")
    out = tmp_path / "out.jsonl"
    process = start_score(
        file,
        *(str(tmp_path / "in"), "--out", str(out)),
        text=True,
        env=one_thread(),
        start_new_session=True,
    )
    message = interrupt_after(process, out, lines, signum)
    assert process.returncode == 128 + signum, message
    assert message.count("\n") == 1, message
    (line,) = message.splitlines()
    assert signal.Signals(signum).name in line
    assert f"--resume continues {out}" in line
    written = out.read_text().count("\n") if out.exists() else 0
    assert lines <= written < 400
