"""SLURM jobs in the terms of submitit, which is an optional dependency."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from submitit import SlurmExecutor

WARNING_SECONDS = 120
"""Time between the warning and the end of a job; SLURM may warn a minute early."""
MINIMUM_MINUTES = WARNING_SECONDS // 60 + 3
"""Shortest time limit of a job that has begun to compute when it is warned."""


def job_parameters(
    nodes: int,
    gpus: int,
    tasks: int,
    cpus: int,
    time: str,
    partition: str | None = None,
    account: str | None = None,
    options: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the parameters of a job for submitit.

    Args:
        nodes: Number of nodes.
        gpus: Number of GPUs of each node, with one process per GPU. 0 for a job on CPUs.
        tasks: Number of processes of each node of a job on CPUs.
        cpus: Number of CPU cores of each process.
        time: Time limit in any form of sbatch, see `minutes`.
        partition: Partition. Defaults to the cluster's default.
        account: Account to charge. Defaults to the user's default.
        options: Further options of sbatch as ``NAME=VALUE`` or ``NAME``.

    Raises:
        InputError: The time limit is malformed or too short.
    """
    limit = minutes(time)
    if limit < MINIMUM_MINUTES:
        raise InputError(
            f"--time {time}: the job would be stopped before it begins to compute; give it at "
            f"least {MINIMUM_MINUTES} minutes"
        )
    further: dict[str, Any] = {"requeue": True}
    for option in options:
        name, _, value = option.partition("=")
        further[name] = value or True
    parameters = {
        "job_name": "diffguard",
        "nodes": nodes,
        "ntasks_per_node": gpus or tasks,
        "gpus_per_node": gpus or None,
        "cpus_per_task": cpus,
        "time": limit,
        "partition": partition,
        "account": account,
        "signal_delay_s": WARNING_SECONDS,
        "stderr_to_stdout": True,
        # srun does not take the number of CPUs from sbatch
        "setup": [
            f"export SRUN_CPUS_PER_TASK={cpus}",
            f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cpus}}}",
        ],
        "srun_args": ["--kill-on-bad-exit=1", "--open-mode=append"],
        # requeues the job where its processes could not
        "teardown": [f"{shlex.quote(sys.executable)} -m diffguard_pl.runs.after_job $?"],
        "additional_parameters": further,
    }
    return {name: value for name, value in parameters.items() if value is not None}


def minutes(time: str) -> int:
    """Return a time limit in minutes, rounded up.

    Args:
        time: ``MINUTES``, ``MINUTES:SECONDS``, ``HOURS:MINUTES:SECONDS``, ``DAYS-HOURS``,
            ``DAYS-HOURS:MINUTES`` or ``DAYS-HOURS:MINUTES:SECONDS``, as for sbatch.

    Raises:
        InputError: It has another form.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not found:
        raise InputError(
            f"--time {time}: must be MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS "
            "or DAYS-HOURS:MINUTES"
        )
    days, *parts = found.groups()
    first, second, third = (int(part or 0) for part in parts)
    begins_with_minutes = days is None and parts[2] is None
    if begins_with_minutes:
        return first + (second > 0)
    return int(days or 0) * 1440 + first * 60 + second + (third > 0)


def executor(folder: Path, parameters: dict[str, Any]) -> "SlurmExecutor":
    """Return submitit's executor, which keeps its files and the logs in a run's folder."""
    import submitit

    executor = submitit.SlurmExecutor(folder / "slurm")
    executor.update_parameters(**parameters)
    return executor


def batch_file(folder: Path, parameters: dict[str, Any], array_size: int | None) -> str:
    """Return the batch file that sbatch would get. It needs no SLURM.

    Args:
        folder: Folder of the run.
        parameters: Parameters of the job.
        array_size: Number of jobs of an array, or None.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    place = (folder / "slurm").absolute()
    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(place)])
    return _make_sbatch_string(command, place, map_count=array_size, **parameters)
