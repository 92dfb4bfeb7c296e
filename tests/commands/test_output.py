"""Lost output: a reader that has gone, a full disk, no standard output at all."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from diffguard_pl.__main__ import main
from diffguard_pl.commands import evaluate
from diffguard_pl.commands.output import lasting_output, lost_output
from diffguard_pl.commands.report import report

SMALL = ["--data.limit", "4", "--model.steps", "5", "--pictures.count", "2"]


@contextmanager
def no_reader() -> Iterator[TextIO]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with lossy(writer) as stream:
        yield stream


@contextmanager
def full_disk() -> Iterator[TextIO]:
    with lossy(os.open("/dev/full", os.O_WRONLY)) as stream:
        yield stream


@contextmanager
def lossy(descriptor: int) -> Iterator[TextIO]:
    stream = os.fdopen(descriptor, "w")
    try:
        yield stream
    finally:
        stream.close()  # raises if anything is left in the buffer


@pytest.mark.parametrize("lost", [no_reader, full_disk])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_cannot_be_written_is_dropped(name, lost, monkeypatch):
    with lost() as stream:
        monkeypatch.setattr(sys, name, stream)
        with lasting_output():
            for _ in range(3):
                print("line", file=getattr(sys, name), flush=True)
        assert getattr(sys, name) is stream


def test_without_standard_output_a_command_prints_to_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with lasting_output():
        print("line", flush=True)
        assert not sys.stdout.isatty()
    assert sys.stdout is None


def test_a_stream_that_is_closed_is_no_error(monkeypatch, tmp_path):
    with (tmp_path / "closed").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
    with lasting_output():
        print("line", flush=True)
        assert "closed" in str(lost_output())


def test_a_name_that_the_encoding_lacks_is_printed_as_an_escape_sequence(monkeypatch, tmp_path):
    with open(tmp_path / "log", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with lasting_output():
            print("chats-\N{LATIN SMALL LETTER E WITH ACUTE}t\udce9")
            assert lost_output() is None
    assert (tmp_path / "log").read_text() == "chats-\\xe9t\\udce9\n"


def test_a_full_disk_below_a_log_is_reported_and_a_reader_that_leaves_is_not(monkeypatch, capsys):
    for lost, is_reported in ((full_disk, True), (no_reader, False)):
        with lost() as stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            with lasting_output():
                print("line")
        assert ("standard output: " in capsys.readouterr().err) == is_reported


@pytest.mark.parametrize("lost", [no_reader, full_disk])
def test_a_run_without_a_reader_leaves_all_its_files(lost, monkeypatch, tmp_path):
    with lost() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        folder = ["--trainer.default_root_dir", str(tmp_path)]
        evaluate.main([*SMALL, "--progress.every", "0", *folder])
    for name in ("metrics.csv", "plots.png", "pictures.png", "report.html"):
        assert (tmp_path / name).is_file()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    evaluate.main([*SMALL, "--page.enabled", "false", "--trainer.default_root_dir", str(folder)])
    return folder


def test_a_report_without_a_reader_is_written(run_folder, monkeypatch, tmp_path):
    page = tmp_path / "comparison.html"
    with no_reader() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        main(["report", str(run_folder), str(run_folder), "--out", str(page)])
    assert (run_folder / "report.html").is_file()
    assert page.is_file()
    assert page.with_suffix(".csv").is_file()


def test_files_are_written_before_anything_is_printed(run_folder, monkeypatch):
    (run_folder / "metrics.csv").unlink()
    monkeypatch.setattr("rich.console.Console.print", broken)
    with pytest.raises(BrokenPipeError):
        report([run_folder])
    assert (run_folder / "metrics.csv").is_file()


def broken(*_: object, **__: object) -> None:
    raise BrokenPipeError


def test_without_standard_streams_no_file_of_a_command_gets_their_descriptors(tmp_path):
    code = (
        "import os, sys; from diffguard_pl.__main__ import main; main(['--version'])\n"
        "open('file', 'w').write(str(os.open('file', os.O_RDONLY)))"
    )
    command = f'exec "{sys.executable}" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, "sh", code], cwd=tmp_path)
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_the_interpreter_ends_with_the_status_of_the_command(tmp_path):
    """Python flushes standard output once more when it ends."""
    command = [sys.executable, "-m", "diffguard_pl", "checkpoints", "list"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
