"""Told to stop: by SIGTERM (a scheduler's or an operator's), or by SIGUSR1 or SIGUSR2 (SLURM's, when the time is nearly up)."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""After these a SLURM job is put back into the queue: ``#SBATCH --signal=USR1@120`` sends the first, submitit the second."""


class StopRequested(BaseException):
    """The run was told to stop; like a KeyboardInterrupt, nothing that mends errors should take it for one.

    Attributes:
        signum: by which signal.
    """

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


class Stop:
    """Listens to the signals.

    Attributes:
        signum: the first that came, or None.
        deferred: do not raise when one comes: the program asks with :meth:`check` when it suits it.
        forward: called with each signal, for processes that this one has started.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self.forward: Callable[[int], None] = lambda signum: None

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Until the block ends; only the main thread of a program hears signals."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, *WARNINGS)}
        self.listen()
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def listen(self) -> None:
        """From now on, in place of whoever listened before."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in (signal.SIGTERM, *WARNINGS):
            signal.signal(signum, self._told)

    def check(self) -> None:
        """Raise `StopRequested` if a signal has come."""
        if self.signum is not None:
            raise StopRequested(self.signum)

    def _told(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
            self.forward(signum)
            if not self.deferred:
                raise StopRequested(signum)


def requeue() -> str | None:
    """Put this SLURM job back into the queue: its number, or None where it is none.

    Raises:
        OSError, subprocess.SubprocessError: SLURM would not.
    """
    job, array = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if job is None:
        return None
    name = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    subprocess.run(
        ["scontrol", "requeue", name], check=True, capture_output=True, text=True, timeout=60
    )
    return name
