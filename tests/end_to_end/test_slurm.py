"""The SLURM scripts and the submit command on a real SLURM: two nodes on this machine, there for these tests alone."""

import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT
from helpers.results import assert_same

from diffguard_pl.commands.submit import main, minutes
from diffguard_pl.runs.store import part_files, read_scores

SCRIPTS = ROOT / "scripts" / "slurm"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
SMALL = ["--data.limit", "16", "--data.batch_size", "4", "--model.slots", "4", "--model.steps", "10", "--scores.every", "0",
         "--pictures.count", "3", "--page.enabled", "false"]  # fmt: skip
CONFIG = ["--config", "digits_ldm"]
ON_CPU = ["--trainer.accelerator", "cpu"]
"""The nodes' GPUs are there for SLURM to count, and for nothing else."""
SLURM_CONF = """
ClusterName=diffguard
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
MpiDefault=none
GresTypes=gpu
KillWait=5
FirstJobId={first}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=one,two NodeHostname=localhost,localhost NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=8 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL State=UP PriorityTier=2
"""
# cred_expire: a requeued job waits for so long, and by default two minutes


def wait_for(true: Callable[[], bool], every: float = 0.25) -> None:
    until = time.monotonic() + 180
    while not true():
        assert time.monotonic() < until
        time.sleep(every)


@dataclass
class Job:
    """A job on the cluster.

    Attributes:
        number: of it, or ARRAY_TASK.
        environment: for SLURM's commands.
    """

    number: str
    environment: dict[str, str]

    def said(self, name: str) -> str:
        """A field of what scontrol says."""
        told = subprocess.run(
            ["scontrol", "show", "job", self.number],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return re.findall(rf"\b{name}=(\S+)", told.stdout)[0]

    @property
    def state(self) -> str:
        return self.said("JobState")

    def wait(self, *states: str) -> None:
        wait_for(lambda: self.state in states)

    def wait_for_parts(self, folder: Path, count: int) -> None:
        """Until so many parts of scores are in the run folders below, and the job is in mid-run."""
        wait_for(
            lambda: (
                len(list(folder.glob("**/part-*.parquet"))) >= count
                or self.state in ("COMPLETED", "FAILED")
            )
        )
        logs = [path.read_text() for path in folder.rglob("*") if path.suffix in (".log", ".out")]
        assert self.state == "RUNNING", "\n".join(logs)

    def signal(self, *args: str) -> None:
        """By scancel."""
        subprocess.run(["scancel", *args, self.number], env=self.environment, check=True)

    def signal_while_it_loads(self, *args: str) -> None:
        """Before Python has imported what listens."""
        steps = ["squeue", "--noheader", f"--steps={self.number}.0"]
        wait_for(
            lambda: bool(
                subprocess.run(steps, env=self.environment, capture_output=True).stdout.strip()
            )
        )
        time.sleep(0.5)
        self.signal(*args)


@dataclass
class Cluster:
    """A SLURM of two nodes.

    Attributes:
        folder: of everything it writes.
        environment: for SLURM's commands, and for the jobs.
    """

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str | Path, cwd: Path, **more: str) -> str:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sbatch(self, *args: str | Path, cwd: Path, **more: str) -> Job:
        return Job(
            self.run("sbatch", "--parsable", *args, cwd=cwd, **more).strip(), self.environment
        )

    def processes(self) -> Iterator[int]:
        """All that was started for the cluster, and by it: they have its configuration in their environment."""
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"SLURM_CONF={self.environment['SLURM_CONF']}".encode() in (
                    place / "environ"
                ).read_bytes().split(b"\0"):
                    yield int(place.name)

    def stop(self) -> None:
        """End all of these, and remove the folder."""
        for _ in range(50):
            left = list(self.processes())
            if not left:
                break
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        pytest.skip(f"a SLURM of its own needs {', '.join(missing)} (Debian: slurm-wlm, munge)")
    if os.getuid() != 0:
        pytest.skip("a SLURM of its own needs root")
    folder = Path(tempfile.mkdtemp(prefix="diffguard-slurm-"))
    folder.chmod(0o755)  # munge has a user of its own
    with ExitStack() as last:
        ports = []
        for _ in range(3):
            taken = last.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            ports.append(taken.getsockname()[1])
        last.close()
        (folder / "state").mkdir()
        (folder / "munge").mkdir()
        (folder / "munge" / "key").write_bytes(os.urandom(1024))
        (folder / "munge" / "key").chmod(0o400)
        for path in (folder / "munge", folder / "munge" / "key"):
            os.chown(path, pwd.getpwnam("munge").pw_uid, pwd.getpwnam("munge").pw_gid)
        first = 10_000 + random.SystemRandom().randrange(
            9_000
        )  # the ranks of a job meet at a port that its number gives
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(folder=folder, ports=ports, first=first)
        )
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-3]\n")
        for number in range(4):
            (folder / f"gpu{number}").touch()
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        outside = {
            name: value
            for name, value in os.environ.items()
            if not re.match("SLURM|SBATCH|SRUN|SALLOC|MASTER_", name)
        }
        made = Cluster(
            folder,
            outside
            | {
                "SLURM_CONF": str(folder / "slurm.conf"),
                "PYTHON": sys.executable,
                "MASTER_ADDR": "127.0.0.1",
            }
            | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120"},
        )
        last.callback(made.stop)
        munge = folder / "munge"
        files = [f"--{name}-file={munge}/{name}" for name in ("key", "pid", "log", "seed")]
        munged = [
            "--reuid=munge",
            "--regid=munge",
            "--clear-groups",
            "munged",
            "--foreground",
            f"--socket={munge}/socket",
            *files,
        ]
        with (folder / "log").open("w") as log:
            for command in (
                munged,
                ["slurmctld", "-D"],
                ["slurmd", "-D", "-N", "one"],
                ["slurmd", "-D", "-N", "two"],
            ):
                subprocess.Popen(
                    ["setpriv", "--pdeathsig=KILL", *command],
                    env=made.environment,
                    cwd=folder,
                    stdout=log,
                    stderr=log,
                )
                if command is munged:
                    wait_for((munge / "socket").exists)
        until = time.monotonic() + 60
        while (
            "2 idle"
            not in (
                said := subprocess.run(
                    ["sinfo", "-h", "-p", "main", "-o", "%D %t"],
                    env=made.environment,
                    capture_output=True,
                    text=True,
                )
            ).stdout
        ):
            assert time.monotonic() < until, (
                said.stdout + said.stderr + (folder / "log").read_text()
            )
            time.sleep(0.2)
        yield made


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """A run of one process, without SLURM."""
    folder = tmp_path_factory.mktemp("plain")
    command = [
        sys.executable,
        "-m",
        "diffguard_pl.test",
        *CONFIG,
        *SMALL,
        *ON_CPU,
        "--trainer.default_root_dir",
        "run",
    ]
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return folder / "run"


def assert_same_table(found: Path, expected: Path) -> None:
    """The same table and scores, every image once, and no weights written."""
    assert_same(found, expected)
    tables = [pd.read_csv(run / "metrics.csv") for run in (found, expected)]
    pd.testing.assert_frame_equal(*tables, atol=1e-3)
    assert (
        sum(path.stat().st_size for path in found.rglob("*") if path.name != "report.html")
        < 2_000_000
    )


# jobs


def test_a_job_that_is_warned_in_mid_run_is_requeued_and_ends_with_the_table_of_a_plain_run(
    cluster, plain, tmp_path
):
    job = cluster.sbatch("--gpus-per-node=2", "--ntasks-per-node=2", "--cpus-per-task=1", SCRIPTS / "diffguard.sbatch",
                         *CONFIG, *SMALL, *ON_CPU, cwd=tmp_path)  # fmt: skip
    job.wait_for_parts(tmp_path, 4)
    job.signal("--signal=USR1")
    wait_for(lambda: job.said("Restarts") == "1")
    (run,) = tmp_path.glob("runs/digits_ldm/*")
    before = len(read_scores(run)[0])
    assert 0 < before < 64
    job.wait("COMPLETED", "FAILED")
    log = (tmp_path / f"diffguard-{job.number}.log").read_text()
    assert job.state == "COMPLETED", log
    assert f"SLURM job {job.number} is requeued" in log
    assert f"{before} images have results already, in {run.relative_to(tmp_path)}" in log
    assert [path.name for path in tmp_path.glob("runs/*/*")] == [run.name]
    assert len({part.name.split("-")[2] for part in part_files(run)}) == 2  # both processes wrote
    assert_same_table(run, plain)


def test_a_cancelled_job_keeps_its_scores_and_two_nodes_go_on_with_it(cluster, plain, tmp_path):
    job = cluster.sbatch("--gres=gpu:1", "--ntasks-per-node=1", "--cpus-per-task=1", SCRIPTS / "diffguard.sbatch",
                         *SMALL, *ON_CPU, cwd=tmp_path, CONFIG="digits_ldm")  # fmt: skip
    job.wait_for_parts(tmp_path, 2)
    job.signal()
    job.wait("CANCELLED")
    log = tmp_path / f"diffguard-{job.number}.log"
    wait_for(lambda: "stopped by SIGTERM" in log.read_text())
    assert job.said("Restarts") == "0"
    assert "queue" not in log.read_text()
    (run,) = tmp_path.glob("runs/digits_ldm/*")
    assert 0 < len(read_scores(run)[0]) < 64
    second = cluster.sbatch("--nodes=2", "--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1",
                            SCRIPTS / "diffguard.sbatch", "--resume", run.relative_to(tmp_path), cwd=tmp_path)  # fmt: skip
    second.wait("COMPLETED", "FAILED")
    assert second.state == "COMPLETED", (tmp_path / f"diffguard-{second.number}.log").read_text()
    assert_same_table(run, plain)


@pytest.mark.parametrize("how", ["--signal=USR1", "urgent"])
def test_a_job_that_is_preempted_while_it_starts_or_with_a_grace_time_comes_again(
    how, cluster, tmp_path
):
    job = cluster.sbatch("--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1", SCRIPTS / "diffguard.sbatch",
                         *CONFIG, *SMALL, *ON_CPU, cwd=tmp_path)  # fmt: skip
    if how == "urgent":
        job.wait_for_parts(tmp_path, 1)
        other = cluster.sbatch(
            "--partition=urgent",
            "--nodes=2",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=true",
            cwd=tmp_path,
        )
        other.wait("COMPLETED")
    else:
        job.signal_while_it_loads(how)
    wait_for(lambda: job.said("Restarts") == "1")
    assert ("stopped by SIGTERM" in (tmp_path / f"diffguard-{job.number}.log").read_text()) == (
        how == "urgent"
    )
    job.wait("RUNNING")
    assert job.said("PreemptTime") == "None"
    job.signal()
    job.wait("CANCELLED")


def test_an_array_of_shards_put_together_is_the_plain_run(cluster, plain, tmp_path):
    array = cluster.sbatch("--array=0-1", "--gpus-per-node=0", "--cpus-per-task=1", SCRIPTS / "diffguard_array.sbatch",
                           *CONFIG, *SMALL, cwd=tmp_path)  # fmt: skip
    whole = f"runs/digits_ldm/array_{array.number}"
    merge = f"{sys.executable} -m diffguard_pl merge {whole} {whole}/[0-9]*"
    last = cluster.sbatch(
        f"--dependency=afterany:{array.number}",
        "--output=merge.log",
        f"--wrap={merge}",
        cwd=tmp_path,
    )
    second = Job(f"{array.number}_1", cluster.environment)
    second.wait_for_parts(tmp_path / whole / "1", 2)
    second.signal("--signal=USR1")
    wait_for(lambda: second.said("Restarts") == "1")
    last.wait("COMPLETED", "FAILED")
    log = tmp_path / f"diffguard-{array.number}_1.log"
    assert last.state == "COMPLETED", (tmp_path / "merge.log").read_text() + log.read_text()
    assert f"SLURM job {second.number} is requeued" in log.read_text()
    assert_same_table(tmp_path / whole, plain)


def test_a_job_whose_time_is_nearly_up_while_it_starts_does_not_come_again_for_ever(
    cluster, tmp_path
):
    job = cluster.sbatch("--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=3", SCRIPTS / "diffguard.sbatch",
                         *CONFIG, *SMALL, cwd=tmp_path)  # fmt: skip
    job.signal_while_it_loads("--signal=USR1")
    job.wait("FAILED")
    assert job.said("Restarts") == "0"
    log = (tmp_path / f"diffguard-{job.number}.log").read_text()
    assert (
        "error: the time of the job was nearly up before the run began; give it --time=5 or more"
        in log
    )


def test_as_many_processes_as_gpus(cluster, tmp_path):
    job = cluster.sbatch(
        "--gpus-per-node=2",
        "--ntasks-per-node=3",
        "--cpus-per-task=1",
        SCRIPTS / "diffguard.sbatch",
        cwd=tmp_path,
    )
    job.wait("FAILED")
    assert (tmp_path / f"diffguard-{job.number}.log").read_text() == (
        "error: 2 GPUs and 3 tasks a node; give sbatch the same number as --gpus-per-node and --ntasks-per-node\n"
    )


# the submit command


def test_a_submitted_run_is_requeued_and_ends_with_the_table_of_a_plain_run(
    cluster, plain, tmp_path
):
    said = cluster.run(sys.executable, "-m", "diffguard_pl", "submit", *CONFIG, *SMALL, *ON_CPU, "--gpus", "2", "--cpus", "1",
                       "--time", "0:30:00", cwd=tmp_path)  # fmt: skip
    number, log, run = re.fullmatch(r"job (\d+)\nlog: (\S+)\nrun: (\S+)\n", said).groups()
    job = Job(number, cluster.environment)
    assert job.said("TimeLimit") == "00:30:00"
    job.wait_for_parts(tmp_path, 4)
    job.signal("--signal=USR2")
    wait_for(lambda: job.said("Restarts") == "1")
    job.wait("COMPLETED", "FAILED")
    log = (tmp_path / log).read_text()
    assert job.state == "COMPLETED", log
    assert f"SLURM job {number} is requeued" in log
    assert "images have results already" in log
    assert_same_table(tmp_path / run, plain)


def test_a_job_that_slurm_refuses_is_told_in_one_line_and_leaves_nothing(cluster, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "diffguard_pl", "submit", *CONFIG, "--partition", "nowhere"],
        cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"error: SLURM refused the job: .*nowhere.*\n", done.stderr)
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_dry_run_prints_the_batch_file_and_the_commands_and_does_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["diffguard-submit"])
    monkeypatch.setenv("PATH", "/nowhere")
    main([*CONFIG, "--nodes", "2", "--gpus", "8", "--time", "1-2", "--partition", "p", "--account", "a", "--shards", "3",
          "--sbatch", "mem=64G", "--data.limit", "5", "--dry-run"])  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    for option in ("nodes=2", "gpus-per-node=8", "ntasks-per-node=8", "time=1560", "partition=p", "account=a", "mem=64G",
                   "array=0-2%3", "signal=USR2@120", "requeue", "open-mode=append"):  # fmt: skip
        assert f"#SBATCH --{option}" in said
    (last,) = [line for line in said if "--shard 2/3" in line]
    assert (
        "--trainer.accelerator gpu --config digits_ldm --data.limit 5 --trainer.devices 8 --trainer.num_nodes 2"
        in last
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], r"there is no sbatch here; submit from a login node .* --dry-run"),
        (["--config", "nowhere", "--dry-run"], r"unknown config 'nowhere'"),
        (["--data.limt", "5", "--dry-run"], r"unknown setting limt; did you mean limit\?"),
        (
            ["--time", "4", "--dry-run"],
            r"time=4: the job would be told to stop before it begins; give it 5 minutes or more",
        ),
        (["--time", "tomorrow", "--dry-run"], r"time=tomorrow: expected MINUTES"),
        (["--shards", "0", "--dry-run"], r"shards: expected 1 or more"),
        (["--shards", "2", "--resume", "run", "--dry-run"], r"shards: .* no --resume"),
    ],
)
def test_a_mistake_is_answered_in_one_line_before_anything_is_queued(
    args, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["diffguard-submit"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as exit_:
        main(args)
    message = exit_.value.code if isinstance(exit_.value.code, str) else capsys.readouterr().err
    (line,) = [line for line in message.splitlines() if line]
    assert re.search(said, line)
    assert not list(tmp_path.iterdir())


def test_without_submitit(monkeypatch):
    monkeypatch.setattr("lightning_utilities.core.imports.RequirementCache", lambda _: False)
    with pytest.raises(
        SystemExit, match=r"error: submitit is not installed; pip install 'diffguard-pl\[cluster\]'"
    ):
        main(["--dry-run"])


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 90),
        ("1:30", 2),
        ("4:00:00", 240),
        ("1-2", 1560),
        ("1-2:30", 1590),
        ("1-2:30:01", 1591),
    ],
)
def test_a_time_limit_in_minutes(time, expected):
    assert minutes(time) == expected
