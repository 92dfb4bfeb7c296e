"""What a SLURM job does after its processes: ``python -m diffguard_pl.runs.after_job STATUS``.

``--signal`` and ``scancel`` signal the processes, not the shell of the job. Warned processes requeue the
job themselves. Two cases are left: they were still loading their libraries and did not listen (status 138
or 140), or SLURM preempts the job and has sent SIGTERM (143) because its partition grants a GraceTime; a
job that ends within it would not be requeued. A job that is warned of the end of its time while it loads
(SLURM may be a minute early) would be requeued for ever, so it is not.
"""

import re
import subprocess
import sys
from datetime import datetime

from .signals import requeue_slurm_job, slurm_job_name

KILLED_BY_WARNING = (128 + 10, 128 + 12)
"""Status of a process that SIGUSR1 or SIGUSR2 has killed."""
KILLED_BY_SIGTERM = 128 + 15
SECONDS_LEFT = 180
"""A job with less time left was warned because its time is nearly up."""


def main(status: int) -> None:
    """Requeue this job if its processes could not, and exit with their status."""
    if status in (*KILLED_BY_WARNING, KILLED_BY_SIGTERM):
        told = subprocess.run(
            ["scontrol", "show", "job", slurm_job_name() or ""], capture_output=True, text=True
        ).stdout
        if re.search(r"JobState=RUNNING\b", told):
            _requeue_or_explain(status, told)
    sys.exit(status)


def _requeue_or_explain(status: int, told: str) -> None:
    is_preempted = re.search(r"PreemptTime=[0-9]", told) is not None
    was_warned = status in KILLED_BY_WARNING
    left = _seconds_until(told, "EndTime")
    if is_preempted or (was_warned and left > SECONDS_LEFT):
        requeue_slurm_job()
    elif was_warned:
        minutes = int(-_seconds_until(told, "StartTime") / 60) + 5
        print(
            "error: the time of the job was nearly up before the run began; give it "
            f"--time={minutes} or more",
            file=sys.stderr,
        )


def _seconds_until(told: str, name: str) -> float:
    """Return the seconds until a time that scontrol shows; infinity if it is unknown."""
    found = re.search(rf"\b{name}=(\d[0-9T:-]+)", told)
    if not found:
        return float("inf")
    return (datetime.fromisoformat(found[1]) - datetime.now()).total_seconds()


if __name__ == "__main__":
    main(int(sys.argv[1]))
