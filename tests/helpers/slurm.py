"""A SLURM cluster of two nodes on this machine, which exists only for the tests."""

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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
SLURM_CONF = """
ClusterName=diffguard
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire, which is two minutes by default.
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
FirstJobId={first_job}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=DEFAULT CPUs=8 Gres=gpu:4 State=UNKNOWN
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]}
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL State=UP PriorityTier=2
"""


def wait_until(condition: Callable[[], bool], seconds: float = 180, every: float = 0.25) -> None:
    """Wait until a condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(every)


def why_no_cluster() -> str | None:
    """Return why no cluster can be started on this machine, or None."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        return f"a SLURM cluster needs {', '.join(missing)} (Debian: slurm-wlm, munge)"
    if os.getuid() != 0:
        return "a SLURM cluster needs root"
    return None


@dataclass
class Job:
    """A job of the cluster.

    Attributes:
        number: Job number, or ARRAY_TASK.
        environment: Environment of SLURM's commands.
    """

    number: str
    environment: dict[str, str]

    def field(self, name: str) -> str:
        """Return a field of what scontrol shows."""
        shown = self._run("scontrol", "show", "job", self.number)
        return re.findall(rf"\b{name}=(\S+)", shown)[0]

    @property
    def state(self) -> str:
        return self.field("JobState")

    def wait_for_state(self, *states: str) -> None:
        wait_until(lambda: self.state in states)

    def wait_for_restart(self) -> None:
        wait_until(lambda: self.field("Restarts") == "1")

    def wait_for_parts(self, folder: Path, count: int) -> None:
        """Wait until the runs below a folder have written parts of scores in mid-run."""

        def is_reached() -> bool:
            parts = list(folder.glob("**/part-*.parquet"))
            return len(parts) >= count or self.state in ("COMPLETED", "FAILED")

        wait_until(is_reached)
        logs = [path.read_text() for path in folder.rglob("*") if path.suffix in (".log", ".out")]
        assert self.state == "RUNNING", "\n".join(logs)

    def signal(self, *args: str) -> None:
        """Send a signal with scancel."""
        self._run("scancel", *args, self.number)

    def signal_while_importing(self, *args: str) -> None:
        """Send a signal as soon as Python has started, seconds before it installs its handlers."""
        program = ["-m", "diffguard_pl.test"]

        def has_started() -> bool:
            for process in processes_with("SLURM_JOB_ID", self.number):
                with suppress(OSError):
                    command = (process / "cmdline").read_text().split("\0")
                    if command[0] == sys.executable and command[2:4] == program:
                        return True
            return False

        wait_until(has_started, every=0.05)
        self.signal(*args)

    def _run(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True
        ).stdout


@dataclass
class Cluster:
    """A SLURM cluster.

    Attributes:
        folder: Folder of everything that it writes.
        environment: Environment of SLURM's commands and of the jobs.
    """

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str | Path, cwd: Path, **variables: str) -> str:
        """Run a command, and return its standard output."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sbatch(self, *args: str | Path, cwd: Path, **variables: str) -> Job:
        """Submit a batch file."""
        number = self.run("sbatch", "--parsable", *args, cwd=cwd, **variables).strip()
        return Job(number, self.environment)

    def job(self, number: str) -> Job:
        return Job(number, self.environment)

    def stop(self) -> None:
        """Kill all processes of the cluster and its jobs, and remove the folder."""
        conf = self.environment["SLURM_CONF"]

        def is_gone() -> bool:
            left = list(processes_with("SLURM_CONF", conf))
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(int(process.name), signal.SIGKILL)
            return not left

        wait_until(is_gone, seconds=10, every=0.1)
        shutil.rmtree(self.folder, ignore_errors=True)


def processes_with(variable: str, value: str) -> Iterator[Path]:
    """Yield the /proc folders of processes whose environment has a variable of this value."""
    wanted = f"{variable}={value}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                yield process


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster, and stop it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="diffguard-slurm-"))
    folder.chmod(0o755)  # munge runs as another user
    _configure(folder)
    outside = {
        name: value
        for name, value in os.environ.items()
        if not re.match("SLURM|SBATCH|SRUN|SALLOC|MASTER_", name)
    }
    environment = outside | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHON": sys.executable,
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    cluster = Cluster(folder, environment)
    try:
        _start_daemons(cluster)
        yield cluster
    finally:
        cluster.stop()


def _configure(folder: Path) -> None:
    (folder / "state").mkdir()
    munge = folder / "munge"
    munge.mkdir()
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    user = pwd.getpwnam("munge")
    for path in (munge, munge / "key"):
        os.chown(path, user.pw_uid, user.pw_gid)
    # The processes of a job meet at a port that follows from its number.
    first_job = 10_000 + random.SystemRandom().randrange(9_000)
    content = SLURM_CONF.format(folder=folder, ports=_free_ports(3), first_job=first_job)
    (folder / "slurm.conf").write_text(content)
    # SLURM counts these GPUs; the jobs do not use them.
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-3]\n")
    for number in range(4):
        (folder / f"gpu{number}").touch()
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def _start_daemons(cluster: Cluster) -> None:
    munge = cluster.folder / "munge"
    log = cluster.folder / "log"

    def start(*command: str) -> None:
        with log.open("a") as opened:
            subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *command],
                env=cluster.environment,
                cwd=cluster.folder,
                stdout=opened,
                stderr=opened,
            )

    files = [f"--{name}-file={munge}/{name}" for name in ("key", "pid", "log", "seed")]
    as_munge = ["--reuid=munge", "--regid=munge", "--clear-groups"]
    start(*as_munge, "munged", "--foreground", f"--socket={munge}/socket", *files)
    wait_until((munge / "socket").exists)
    start("slurmctld", "-D")
    start("slurmd", "-D", "-N", "one")
    start("slurmd", "-D", "-N", "two")

    def are_nodes_idle() -> bool:
        command = ["sinfo", "-h", "-p", "main", "-o", "%D %t"]
        shown = subprocess.run(command, env=cluster.environment, capture_output=True, text=True)
        return "2 idle" in shown.stdout

    try:
        wait_until(are_nodes_idle, seconds=60)
    except AssertionError as error:
        raise AssertionError(log.read_text()) from error
