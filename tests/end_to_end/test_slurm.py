"""The batch file and the submit command on a real SLURM cluster, which the tests start."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT, preloaded
from helpers.results import assert_same
from helpers.slurm import Cluster, Job, running_cluster, wait_until, why_no_cluster

from diffguard_pl.commands.submit import main
from diffguard_pl.runs.store import part_files, read_scores

BATCH_FILE = ROOT / "scripts" / "slurm" / "diffguard.sbatch"
CONFIG = ["--config", "digits_ldm"]
SMALL = [
    *("--data.limit", "16"),
    *("--data.batch_size", "4"),
    *("--model.slots", "4"),
    *("--model.steps", "10"),
    *("--scores.every", "0"),
    *("--pictures.count", "3"),
    *("--page.enabled", "false"),
]
ON_CPU = ["--trainer.accelerator", "cpu"]
"""The GPUs of the nodes exist only for SLURM to count."""
ONE_TASK = ["--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := why_no_cluster():
        pytest.skip(reason)
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory) -> Path:
    """A run of one process, without SLURM."""
    folder = tmp_path_factory.mktemp("plain")
    done = preloaded.run(
        ["-m", "diffguard_pl.test", *CONFIG, *SMALL, *ON_CPU, "--trainer.default_root_dir", "run"],
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


def assert_same_table(found: Path, expected: Path) -> None:
    """The same table and scores, every image once, and no weights written."""
    assert_same(found, expected)
    tables = [pd.read_csv(run / "metrics.csv") for run in (found, expected)]
    pd.testing.assert_frame_equal(*tables, atol=1e-3)
    sizes = [path.stat().st_size for path in found.rglob("*") if path.name != "report.html"]
    assert sum(sizes) < 2_000_000


def log_of(job: Job, folder: Path) -> str:
    return (folder / f"diffguard-{job.number}.log").read_text()


# The batch file


def test_a_job_warned_in_mid_run_is_requeued_and_completes_the_run(cluster, plain_run, tmp_path):
    job = cluster.sbatch(
        *("--gpus-per-node=1", "--ntasks-per-node=1", "--cpus-per-task=1"),
        *(BATCH_FILE, *CONFIG, *SMALL, *ON_CPU),
        cwd=tmp_path,
    )
    job.wait_for_parts(tmp_path, 4)
    job.signal("--signal=USR1")
    job.wait_for_restart()
    (run,) = tmp_path.glob("runs/digits_ldm/*")
    scored = len(read_scores(run)[0])
    assert 0 < scored < 64
    job.wait_for_state("COMPLETED", "FAILED")
    log = log_of(job, tmp_path)
    assert job.state == "COMPLETED", log
    assert re.search(rf"{job.number} is requeued", log)
    assert re.search(rf"{scored} images .* {run.relative_to(tmp_path)}", log)
    assert [path.name for path in tmp_path.glob("runs/*/*")] == [run.name]
    assert_same_table(run, plain_run)


@pytest.mark.slow
def test_a_cancelled_job_keeps_its_scores_and_can_be_resumed_on_two_nodes(
    cluster, plain_run, tmp_path
):
    job = cluster.sbatch(
        *("--gres=gpu:1", "--ntasks-per-node=1", "--cpus-per-task=1"),
        *(BATCH_FILE, *SMALL, *ON_CPU),
        cwd=tmp_path,
        CONFIG="digits_ldm",
    )
    job.wait_for_parts(tmp_path, 2)
    job.signal()
    job.wait_for_state("CANCELLED")
    wait_until(lambda: "stopped by SIGTERM" in log_of(job, tmp_path))
    assert job.field("Restarts") == "0"
    assert "queue" not in log_of(job, tmp_path)
    (run,) = tmp_path.glob("runs/digits_ldm/*")
    assert 0 < len(read_scores(run)[0]) < 64
    second = cluster.sbatch(
        *("--nodes=2", *ONE_TASK, BATCH_FILE, "--resume", run.relative_to(tmp_path)),
        cwd=tmp_path,
    )
    second.wait_for_state("COMPLETED", "FAILED")
    assert second.state == "COMPLETED", log_of(second, tmp_path)
    assert_same_table(run, plain_run)


@pytest.mark.parametrize(
    "how", ["while importing", pytest.param("with a grace time", marks=pytest.mark.slow)]
)
def test_a_preempted_job_is_requeued(how, cluster, tmp_path):
    job = cluster.sbatch(*ONE_TASK, BATCH_FILE, *CONFIG, *SMALL, *ON_CPU, cwd=tmp_path)
    if how == "while importing":
        job.signal_while_importing("--signal=USR1")
    else:
        job.wait_for_parts(tmp_path, 1)
        urgent = cluster.sbatch(
            *("--partition=urgent", "--nodes=2", "--exclusive"),
            *("--output=/dev/null", "--wrap=true"),
            cwd=tmp_path,
        )
        urgent.wait_for_state("COMPLETED")
    job.wait_for_restart()
    is_stopped_by_handler = "stopped by SIGTERM" in log_of(job, tmp_path)
    assert is_stopped_by_handler == (how == "with a grace time")
    job.wait_for_state("RUNNING")
    assert job.field("PreemptTime") == "None"
    job.signal()
    job.wait_for_state("CANCELLED")


@pytest.mark.slow
def test_merged_shards_of_an_array_equal_a_plain_run(cluster, plain_run, tmp_path):
    array = cluster.sbatch(
        *("--array=0-1", *ONE_TASK, "--output=%x-%A_%a.log"),
        *(BATCH_FILE, *CONFIG, *SMALL),
        cwd=tmp_path,
    )
    whole = f"runs/digits_ldm/array_{array.number}"
    merge_command = f"{sys.executable} -m diffguard_pl merge {whole} {whole}/[0-9]*"
    merge = cluster.sbatch(
        *(f"--dependency=afterany:{array.number}", "--output=merge.log"),
        f"--wrap={merge_command}",
        cwd=tmp_path,
    )
    second = cluster.job(f"{array.number}_1")
    second.wait_for_parts(tmp_path / whole / "1", 2)
    second.signal("--signal=USR1")
    second.wait_for_restart()
    merge.wait_for_state("COMPLETED", "FAILED")
    log = log_of(second, tmp_path)
    assert merge.state == "COMPLETED", (tmp_path / "merge.log").read_text() + log
    assert f"{second.number} is requeued" in log
    assert_same_table(tmp_path / whole, plain_run)


def test_a_job_that_is_warned_of_its_time_limit_while_importing_is_not_requeued(cluster, tmp_path):
    job = cluster.sbatch(*ONE_TASK, "--time=3", BATCH_FILE, *CONFIG, *SMALL, cwd=tmp_path)
    job.signal_while_importing("--signal=USR1")
    job.wait_for_state("FAILED")
    assert job.field("Restarts") == "0"
    assert re.search(r"error: .*--time=5 or more", log_of(job, tmp_path))


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        (["--gpus-per-node=2", "--ntasks-per-node=3"], [], "2 GPUs and 3 tasks.*--ntasks-per-node"),
        (["--array=1,3", *ONE_TASK], [], "gaps.*--array=0-7"),
        (["--array=1", *ONE_TASK], ["--resume", "run"], "--resume.*without --array"),
    ],
)
def test_the_batch_file_rejects_options_that_do_not_fit(options, args, message, cluster, tmp_path):
    job = cluster.sbatch(
        *(*options, "--cpus-per-task=1", "--output=log", BATCH_FILE, *args), cwd=tmp_path
    )
    job.wait_for_state("FAILED")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines
    assert all(re.match(f"error: .*{message}", line) for line in lines)


# The submit command


def test_a_submitted_job_is_requeued_and_completes_the_run(cluster, plain_run, tmp_path):
    shown = cluster.run(
        *(sys.executable, "-m", "diffguard_pl", "submit", *CONFIG, *SMALL, *ON_CPU),
        *("--gpus", "2", "--cpus", "1", "--time", "0:30:00"),
        cwd=tmp_path,
    )
    number, log_file, run = re.fullmatch(r"job (\d+)\nlog: (\S+)\nrun: (\S+)\n", shown).groups()
    job = cluster.job(number)
    assert job.field("TimeLimit") == "00:30:00"
    job.wait_for_parts(tmp_path, 4)
    job.signal("--signal=USR2")
    job.wait_for_restart()
    job.wait_for_state("COMPLETED", "FAILED")
    log = (tmp_path / log_file).read_text()
    assert job.state == "COMPLETED", log
    assert f"{number} is requeued" in log
    assert run in log
    ranks = {part.name.split("-")[2] for part in part_files(tmp_path / run)}
    assert len(ranks) == 2
    assert_same_table(tmp_path / run, plain_run)


def test_a_job_that_slurm_refuses_leaves_one_line_and_no_folder(cluster, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "diffguard_pl", "submit", *CONFIG, "--partition", "nowhere"],
        cwd=tmp_path,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: SLURM .*nowhere.*\n", done.stderr)
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.fixture
def without_slurm(tmp_path, monkeypatch) -> Path:
    """An empty working directory on a machine without SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["diffguard-pl", "submit"])
    monkeypatch.setenv("PATH", "/nowhere")
    return tmp_path


def test_a_dry_run_prints_the_batch_file_and_does_nothing_else(without_slurm, capsys):
    main(
        [
            *(*CONFIG, "--data.limit", "5", "--shards", "3", "--dry-run"),
            *("--nodes", "2", "--gpus", "8", "--time", "1-2"),
            *("--partition", "p", "--account", "a", "--sbatch", "mem=64G"),
        ]
    )
    shown = capsys.readouterr().out.splitlines()
    for option in (
        *("nodes=2", "gpus-per-node=8", "ntasks-per-node=8", "time=1560"),
        *("partition=p", "account=a", "mem=64G", "array=0-2%3"),
        *("signal=USR2@120", "requeue", "open-mode=append"),
    ):
        assert f"#SBATCH --{option}" in shown
    (last,) = [line for line in shown if "--shard 2/3" in line]
    assert (
        "--trainer.accelerator gpu --config digits_ldm --data.limit 5 "
        "--trainer.devices 8 --trainer.num_nodes 2"
    ) in last
    assert not list(without_slurm.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], r"sbatch.*--dry-run"),
        (["--config", "nowhere", "--dry-run"], r"unknown config 'nowhere'"),
        (["--data.limt", "5", "--dry-run"], r"unknown setting limt; did you mean limit"),
        (["--time", "4", "--dry-run"], r"--time 4: .*at least 5 minutes"),
        (["--time", "tomorrow", "--dry-run"], r"--time tomorrow: must be MINUTES"),
        (["--shards", "0", "--dry-run"], r"--shards 0: must be at least 1"),
        (["--shards", "2", "--resume", "run", "--dry-run"], r"--shards: .*--resume"),
    ],
)
def test_a_mistake_is_reported_in_one_line_before_anything_is_queued(
    args, message, without_slurm, capsys
):
    with pytest.raises(SystemExit) as ended:
        main(args)
    code = ended.value.code
    shown = code if isinstance(code, str) else capsys.readouterr().err
    (line,) = [line for line in shown.splitlines() if line]
    assert re.search(message, line)
    assert not list(without_slurm.iterdir())


def test_without_submitit_the_command_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("lightning_utilities.core.imports.RequirementCache", lambda _: False)
    with pytest.raises(SystemExit, match="submitit is not installed; pip install submitit"):
        main(["--dry-run"])
