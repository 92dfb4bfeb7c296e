"""How commands end: errors, lack of memory, signals."""

import signal
from collections.abc import Iterator

import pytest
import torch

from diffguard_pl.__main__ import main
from diffguard_pl.commands import analyze, calibrate, errors, evaluate
from diffguard_pl.commands.errors import one_line_errors
from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.evaluation.noise_accuracy import NoiseAccuracyModule

QUICK = ["--data.limit", "6", "--data.batch_size", "2", "--model.steps", "5", "--model.slots", "2"]


@pytest.fixture(autouse=True)
def no_exit_handlers(monkeypatch):
    """Leave Ctrl-C to pytest when the tests end."""
    monkeypatch.setattr(errors, "ignore_ctrl_c_at_exit", lambda: None)


def interrupt(*_: object, **__: object) -> None:
    signal.raise_signal(signal.SIGINT)


# Ctrl-C


@pytest.mark.parametrize(
    ("args", "interrupted", "go_on"),
    [
        (["report", "nowhere"], "diffguard_pl.commands.report.report", "starts again"),
        (["merge", "out", "a"], "diffguard_pl.runs.lock.lock_run_folder", "remove out"),
        (["data", "check", "digits_ldm"], "diffguard_pl.commands.data.run", "continues"),
        (["checkpoints", "list"], "diffguard_pl.commands.checkpoints.table", "continues"),
        (
            ["checkpoints", "convert", "x"],
            "diffguard_pl.backbones.save_converted.save_converted",
            "continues",
        ),
        (["score", "x", "--detector", "y"], "diffguard_pl.commands.score.score", "starts again"),
        (
            ["score", "x", "--detector", "y", "--out", "z.csv"],
            "diffguard_pl.commands.score.score",
            "--resume continues z.csv",
        ),
        (["submit"], "diffguard_pl.commands.submit.submit", "starts again"),
        (["serve", "--detector", "y"], "diffguard_pl.commands.serve.require", "starts again"),
        (["demo"], "diffguard_pl.commands.demo.require", "starts again"),
        (["report", "--help"], "diffguard_pl.__main__.import_module", "starts again"),
    ],
)
def test_ctrl_c_ends_a_command_with_one_line_that_says_how_to_go_on(
    args, interrupted, go_on, monkeypatch, capsys
):
    monkeypatch.setattr(interrupted, interrupt)
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 128 + signal.SIGINT
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("stopped by SIGINT; ")
    assert go_on in line
    assert printed.out == ""


def line_of_the_end(printed: str) -> str:
    """Return the line after a run's progress and warnings."""
    assert "Traceback" not in printed
    *_, line = printed.splitlines()
    return line


@pytest.fixture(params=[signal.SIGINT, signal.SIGHUP])
def signum(request) -> Iterator[signal.Signals]:
    """A signal that is not ignored, as it would be under nohup or in the background of a script."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


@pytest.mark.parametrize("name", ["test", "calibrate"])
def test_an_interrupted_run_keeps_its_scores_and_says_how_to_resume(
    name, signum, tmp_path, monkeypatch, capsys
):
    command = {"test": evaluate, "calibrate": calibrate}[name]
    # so many that a threshold can be set, and that more batches follow
    images_of_calibration = ["--data.limit", "20"] if name == "calibrate" else []
    images = []

    def interrupt_in_second_batch(self, outputs, *_):
        images.extend(finished.dataset for finished in outputs["finished"])
        if len(images) >= 2:
            signal.raise_signal(signum)

    monkeypatch.setattr(DiffGuardModule, "on_test_batch_end", interrupt_in_second_batch)
    folder = ["--trainer.default_root_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        command.main([*QUICK, *folder, *images_of_calibration])
    assert ended.value.code == 128 + signum
    line = line_of_the_end(capsys.readouterr().err)
    assert f"stopped by {signum.name}; " in line
    assert line.endswith(f"diffguard-pl {name} --resume {tmp_path / 'run'}")
    assert list((tmp_path / "run" / "scores").glob("*.parquet"))


def test_a_run_that_is_interrupted_before_it_begins_has_nothing_to_resume(monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "command_line", interrupt)
    with pytest.raises(SystemExit) as ended:
        evaluate.main(QUICK)
    assert ended.value.code == 128 + signal.SIGINT
    line = line_of_the_end(capsys.readouterr().err)
    assert "the same command starts again" in line


def test_an_interrupted_analysis_ends_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(NoiseAccuracyModule, "test_step", interrupt)
    with pytest.raises(SystemExit) as ended:
        analyze.main([*QUICK, "--trainer.default_root_dir", str(tmp_path)])
    assert ended.value.code == 128 + signal.SIGINT
    line = line_of_the_end(capsys.readouterr().err)
    assert line == "stopped by SIGINT; the same command starts again"


# Errors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), r"out of memory; .*model.slots"),
        (MemoryError("Unable to allocate 8 GiB"), r"out of memory \(Unable to allocate 8 GiB\)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), r"out of memory.*slots"),
        (torch.OutOfMemoryError("tried to allocate 2 GiB.\nmore"), r"2 GiB.*model.slots"),
        (RecursionError("maximum recursion depth exceeded"), r"nests too deep.*flatten"),
    ],
)
def test_what_the_machine_cannot_do_is_said_with_a_remedy(error, message):
    with pytest.raises(SystemExit, match=message) as ended, one_line_errors():
        raise error
    assert "\n" not in str(ended.value)


def test_an_error_that_quotes_a_whole_file_is_shortened():
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise InputError(f"file: begins so {'x' * 100_000}; remedy")
    line = str(ended.value)
    assert len(line) < 1600
    assert line.startswith("error: file: begins so xxx")
    assert line.endswith("xxx; remedy")


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that",
        "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
        "Too many open files. Communication with the workers is no longer possible.\nPlease",
    ],
)
def test_a_lost_process_that_reads_images_is_one_line(message):
    with pytest.raises(SystemExit, match=r"num_workers.*ulimit -n") as stopped, one_line_errors():
        raise RuntimeError(message)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n..."), TypeError("x")],
)
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)), one_line_errors():
        raise error
