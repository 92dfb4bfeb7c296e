"""What a SLURM job does after its processes: ``python -m diffguard_pl.runs.after_job STATUS``.

``--signal`` and ``scancel`` signal the processes, not the shell of the job. Warned processes
requeue the job themselves. Two cases remain:

- The processes were still importing libraries, so that the signal killed them (status 138 or 140).
- SLURM preempts the job and has sent SIGTERM (143) because its partition has a GraceTime. SLURM
  does not requeue a job that ends within it.

A job that is warned of its time limit while it imports (SLURM may be a minute early) is not
requeued: it would be warned again, and requeued without end.
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
        shown = subprocess.run(
            ["scontrol", "show", "job", slurm_job_name() or ""], capture_output=True, text=True
        ).stdout
        if re.search(r"JobState=RUNNING\b", shown):
            _requeue_or_explain(status, shown)
    sys.exit(status)


def _requeue_or_explain(status: int, shown: str) -> None:
    is_preempted = re.search(r"PreemptTime=[0-9]", shown) is not None
    was_warned = status in KILLED_BY_WARNING
    left = _seconds_until(shown, "EndTime")
    if is_preempted or (was_warned and left > SECONDS_LEFT):
        requeue_slurm_job()
    elif was_warned:
        minutes = int(-_seconds_until(shown, "StartTime") / 60) + 5
        print(
            "error: time limit: nearly reached before the run began; give the job "
            f"--time={minutes} or more",
            file=sys.stderr,
        )


def _seconds_until(shown: str, name: str) -> float:
    """Return the seconds until a time that scontrol shows; infinity if it is unknown."""
    found = re.search(rf"\b{name}=(\d[0-9T:-]+)", shown)
    if not found:
        return float("inf")
    return (datetime.fromisoformat(found[1]) - datetime.now()).total_seconds()


if __name__ == "__main__":
    main(int(sys.argv[1]))
