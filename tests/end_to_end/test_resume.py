"""A run that is interrupted, at any time and by whatever, and goes on."""

import itertools
import json
import os
import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from helpers import preloaded

from diffguard_pl.commands.evaluate import main
from diffguard_pl.runs import record
from diffguard_pl.runs.store import part_files, read_scores

SMALL = ["--data.limit", "24", "--data.batch_size", "8", "--model.slots", "8",
         "--model.steps", "3", "--model.discrepancies", "[maps, l2]", "--pictures.count", "3",
         "--scores.every", "0"]  # fmt: skip
QUIET = ["--page.enabled", "false"]


def begin(folder: Path, *args: str) -> preloaded.Process:
    """Start the command in a process of its own."""
    with log(folder).open("a") as said:
        return preloaded.start(
            ["-m", "diffguard_pl.test", *args], cwd=folder, stdout=said, stderr=subprocess.STDOUT
        )


def log(folder: Path) -> Path:
    """What the command said; beside its folder, which may be a full disk."""
    return folder.with_name(f"{folder.name}.log")


def finished(child: preloaded.Process) -> int:
    return child.wait(timeout=300)


def ended(child: preloaded.Process, or_when: Callable[[], bool]) -> int | None:
    """Wait until a process ends, and return its status, or until a condition holds."""
    while child.poll() is None and not or_when():
        time.sleep(0.01)
    return child.returncode


def killed(child: preloaded.Process) -> None:
    child.kill()
    child.wait(timeout=60)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finished(begin(folder, *SMALL, *QUIET, "--trainer.default_root_dir", "run")) == 0, log(
        folder
    ).read_text()
    return folder / "run"


@pytest.fixture
def broken_off(tmp_path) -> Path:
    """A run that was killed after some parts."""
    child = begin(tmp_path, *SMALL, *QUIET, "--trainer.default_root_dir", "run")
    while len(part_files(tmp_path / "run")) < 4:
        time.sleep(0.01)
    killed(child)
    assert len(part_files(tmp_path / "run")) < 12
    return tmp_path / "run"


def assert_same(found: Path, expected: Path) -> None:
    """The same table, and the same results but for their time."""
    ours, theirs = read_scores(found)[0], read_scores(expected)[0]
    pd.testing.assert_frame_equal(
        ours.drop(columns="seconds"), theirs.drop(columns="seconds"), atol=1e-4
    )
    assert not ours.duplicated(["dataset", "index"]).any()
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (found, expected)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    pictures = [
        sorted(str(path.relative_to(folder)) for path in folder.glob("pictures/*/*"))
        for folder in (found, expected)
    ]
    assert pictures[0] == pictures[1]


def test_a_run_that_is_killed_again_and_again_ends_with_the_table_of_an_undisturbed_one(
    undisturbed, tmp_path
):
    run = tmp_path / "run"
    first = [*SMALL, *QUIET, "--trainer.default_root_dir", "run"]
    # kill at the start, and after one to three more parts; in a fixed order
    moments = [0, 1, 2, 3]
    random.Random(0).shuffle(moments)
    for kills, more in enumerate(itertools.cycle(moments)):  # noqa: B007  read after the loop
        before = part_files(run)
        child = begin(tmp_path, *(["--resume", "run"] if before else first))
        status = ended(child, or_when=lambda: len(part_files(run)) >= len(before) + more)  # noqa: B023
        if status is not None:
            assert status == 0, log(tmp_path).read_text()
            break
        killed(child)
        for part in part_files(run):
            read_scores(run, only=[part])  # no part is half written
        assert set(before) <= set(part_files(run))
    assert kills > 1
    assert_same(run, undisturbed)


def test_what_is_missing_is_computed_and_nothing_else(broken_off, undisturbed):
    before = {part: part.stat().st_mtime_ns for part in part_files(broken_off)}
    scored = len(read_scores(broken_off)[0])
    assert finished(begin(broken_off.parent, "--resume", "run", "--data.batch_size", "5")) == 0
    assert {part: part.stat().st_mtime_ns for part in before} == before
    sessions = json.loads((broken_off / "run.json").read_text())["sessions"]
    assert sessions[-1]["throughput"]["images"] == 96 - scored
    assert len(sessions) == 2
    assert_same(broken_off, undisturbed)


def test_a_run_goes_on_with_another_number_of_devices(broken_off, undisturbed):
    command = [
        "-m",
        "diffguard_pl.test",
        "--resume",
        "run",
        "--trainer.devices",
        "2",
        "--trainer.accelerator",
        "cpu",
    ]
    done = preloaded.run(command, cwd=broken_off.parent, fork_ranks=True)
    assert done.returncode == 0, done.stderr
    assert (
        f"{len(read_scores(broken_off, only=part_files(broken_off)[:4])[0])} images have results "
        f"already" in done.stdout
    )
    assert (
        len({part.name.split("-")[2] for part in part_files(broken_off)}) == 2
    )  # both devices wrote
    assert_same(broken_off, undisturbed)


def test_a_finished_run_gives_its_table_again_whatever_the_number_of_devices(undisturbed, tmp_path):
    (tmp_path / "run").symlink_to(undisturbed)
    before, table = part_files(undisturbed), (undisturbed / "metrics.csv").read_text()
    (undisturbed / "metrics.csv").unlink()
    assert finished(begin(tmp_path, "--resume", "run")) == 0, log(tmp_path).read_text()
    assert part_files(undisturbed) == before
    assert (undisturbed / "metrics.csv").read_text() == table


def test_the_config_of_a_run_begins_the_same_run_elsewhere(undisturbed, tmp_path):
    assert finished(begin(tmp_path, "--config", str(undisturbed / "config.yaml"))) == 0, log(
        tmp_path
    ).read_text()
    (folder,) = (tmp_path / "runs" / "config").iterdir()
    assert (folder / "metrics.csv").read_text() == (undisturbed / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--seed_everything", "7"], r"seed_everything was 100 .* is 7 now"),
        (
            ["--model.guidance.scale", "5"],
            r"model.guidance.init_args.scale was 3.0 when the run began and is 5.0 now",
        ),
        (["--model.steps", "10"], r"model.steps was 3 .* is 10 now"),
        (["--model.discrepancies", "[l2]"], r"model.discrepancies was \[\"maps\""),
        (["--data.limit", "30"], r"data.init_args.limit was 24"),
        (["--data.split", "tuning"], r"data.init_args.split"),
        (["--config", "digits_gdm"], r"model.backbone"),
        (
            ["--trainer.precision", "bf16-mixed"],
            r"trainer.precision was not set .* is \"bf16-mixed\" now",
        ),
        (["--trainer.limit_test_batches", "2"], r"limit_test_batches"),
        (["--scores.keep", "[logits]"], r"cannot be resumed with maps, .*input_logits"),
        (["--trainer.default_root_dir", "other"], r"--resume .*default_root_dir=other"),
    ],
)
def test_a_config_that_would_change_the_scores_is_refused(
    args, said, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["diffguard-test", "--resume", str(undisturbed), *args])
    with pytest.raises(SystemExit, match=said) as exit_:
        main()
    assert "\n" not in str(exit_.value.code)


def test_other_weights_are_refused(undisturbed, tmp_path, monkeypatch):
    run_record = json.loads((undisturbed / "run.json").read_text())
    (tmp_path / "config.yaml").write_text((undisturbed / "config.yaml").read_text())
    (tmp_path / "run.json").write_text(
        json.dumps(run_record | {"weights": run_record["weights"] | {"backbone": "0" * 64}})
    )
    monkeypatch.setattr("sys.argv", ["diffguard-test", "--resume", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"weights of the backbone have changed.*restore"):
        main()


def test_no_run_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["diffguard-test", "--resume", "runs/nowhere"])
    with pytest.raises(
        SystemExit,
        match=r"--resume runs/nowhere: .*config.yaml",
    ):
        main()


def test_the_record_of_a_run(undisturbed):
    run_record = json.loads((undisturbed / "run.json").read_text())
    assert run_record["config"] == yaml.safe_load((undisturbed / "config.yaml").read_text())
    assert run_record["config"]["model"]["steps"] == 3
    assert set(run_record["weights"]) == {"classifier", "backbone"}
    assert all(len(digest) == 64 for digest in run_record["weights"].values())
    session = run_record["sessions"][0]
    assert session["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert session["machine"]["cpus"] == os.cpu_count()
    assert "--model.steps" in session["command"]
    assert session["began"] <= session["ended"]
    throughput = session["throughput"]
    assert throughput["images"] == 96
    assert throughput["nfe"] == 96 * (
        3 + 2 * 3
    )  # inversion, and denoising with and without the label
    assert throughput["peak_memory_bytes"] > 1e8
    assert sum(throughput["stages"].values()) == pytest.approx(throughput["seconds"], rel=1e-3)


def test_a_requeued_job_finds_its_run_and_goes_on(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    child = begin(tmp_path, *SMALL, *QUIET)
    while len(list(tmp_path.glob("runs/**/part-*"))) < 3:
        time.sleep(0.01)
    killed(child)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert finished(begin(tmp_path, *SMALL, *QUIET)) == 0, log(tmp_path).read_text()
    (folder,) = tmp_path.glob("runs/digits_ldm/*_job4711")
    assert "images have results already" in log(tmp_path).read_text()
    assert_same(folder, undisturbed)


def test_a_requeued_job_with_a_folder_of_its_own_choice(broken_off, undisturbed, monkeypatch):
    args = [*SMALL, *QUIET, "--trainer.default_root_dir", "run"]
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert finished(begin(broken_off.parent, *args)) == 1  # another job's
    assert "holds the results of another run" in log(broken_off.parent).read_text()
    record.update_session(broken_off, slurm_job="4711")
    assert finished(begin(broken_off.parent, *args)) == 0
    assert_same(broken_off, undisturbed)


# -------------------------------------------------------------------------------------------- disks


def test_a_full_or_read_only_disk_is_one_line_and_what_was_written_stays_valid(
    undisturbed, tmp_path
):
    room = tmp_path / "small"
    room.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", room], capture_output=True
    ).returncode:
        pytest.skip("a small disk of its own needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro", room], check=True)
        assert finished(begin(room, *SMALL, *QUIET, "--trainer.default_root_dir", "run")) == 1
        assert (
            "error: run folder run: cannot be written (Read-only file system); earlier"
            in log(room).read_text()
        )
        subprocess.run(["mount", "-o", "remount,rw", room], check=True)
        assert finished(begin(room, *SMALL, *QUIET, "--trainer.default_root_dir", "run")) == 1
        (said,) = [line for line in log(room).read_text().splitlines() if "No space left" in line]
        assert re.fullmatch(
            r"error: run/\S+: cannot be written \(No space left on device\); .* --resume",
            said,
        )
        written = read_scores(room / "run")[0]
        assert 0 < len(written) < 96
        assert not list((room / "run" / "scores").glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=64m", room], check=True)
        assert finished(begin(room, "--resume", "run")) == 0, log(room).read_text()
        assert_same(room / "run", undisturbed)
    finally:
        subprocess.run(["umount", "-l", room], check=True)


def test_scores_are_a_plain_parquet_data_set(undisturbed):
    frame = pd.read_parquet(undisturbed / "scores")
    assert len(frame) == 96
    assert list(frame.columns[:8]) == [
        "dataset", "group", "index", "path", "label", "prediction", "reconstructed_as", "stop_index"
    ]  # fmt: skip
    assert list(frame.columns[-2:]) == ["seconds", "error"]
    assert {"maps", "msp", "max_logit", "energy"} <= set(frame.columns)
    assert frame.groupby("group")["dataset"].nunique().to_dict() == {"ind": 1, "near": 1, "far": 2}
    assert (frame["seconds"] > 0).all()


def test_logits_features_and_reconstructions_in_half_precision_on_request(tmp_path, digits_ldm):
    from diffguard_pl.datamodules.digits import digits

    keep = ["--scores.keep", "[logits,features,reconstructions]"]
    assert (
        finished(
            begin(
                tmp_path,
                *SMALL,
                *QUIET,
                *keep,
                "--data.limit",
                "8",
                "--model.steps",
                "10",
                "--trainer.default_root_dir",
                "run",
            )
        )
        == 0
    )
    frame = pd.read_parquet(tmp_path / "run" / "scores")
    first = frame[(frame["dataset"] == "digits") & (frame["index"] == 0)].iloc[0]
    detection = digits_ldm(digits("test").images[:1])
    for column, expected in (
        ("input_logits", detection.prediction.view.logits),
        ("input_features", detection.prediction.view.features),
        ("reconstruction", detection.reconstructions),
    ):
        assert first[column].dtype == "float16"
        assert torch.from_numpy(first[column]).float() == pytest.approx(
            expected.flatten(), abs=5e-3
        )
    assert "input_logits" not in read_scores(tmp_path / "run")[0]
