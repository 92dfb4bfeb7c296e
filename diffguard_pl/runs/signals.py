"""Graceful termination on SIGTERM, SIGUSR1 and SIGUSR2.

A scheduler or an operator sends SIGTERM; SLURM sends SIGUSR1 or SIGUSR2 shortly before a job's
time limit. callbacks/stop.py ends a test with them. Windows has SIGTERM alone.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

REQUEUE_SIGNALS: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)
"""Signals that precede a job's time limit; the job is requeued after them.

``#SBATCH --signal=USR1@120`` sends the first, submitit the second.
"""
HANDLED_SIGNALS: tuple[int, ...] = (signal.SIGTERM, *REQUEUE_SIGNALS)


class StopRequested(BaseException):
    """Request to end the run.

    Derives from `BaseException`, like `KeyboardInterrupt`, so that no error recovery catches it.

    Attributes:
        signum: Number of the signal that requested it.
    """

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


class GracefulTermination:
    """Signal handlers that end a run in an orderly way.

    Attributes:
        signum: Number of the first signal received, or None.
        deferred: Whether a signal is only recorded; the program then calls :meth:`check` whenever
            it is ready to stop. Defaults to False: a signal raises `StopRequested` at once.
        forward_signal: Function called with the first signal, to pass it on to child processes.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self.forward_signal: Callable[[int], None] = lambda signum: None

    @contextmanager
    def handling_signals(self) -> Iterator["GracefulTermination"]:
        """Handle the signals until the block ends, then restore the earlier handlers.

        Does nothing outside the main thread, where Python does not allow signal handlers.
        """
        if not _in_main_thread():
            yield self
            return
        earlier = {signum: signal.getsignal(signum) for signum in HANDLED_SIGNALS}
        self.install_handlers()
        try:
            yield self
        finally:
            for signum, handler in earlier.items():
                signal.signal(signum, handler)

    def install_handlers(self) -> None:
        """Replace the current signal handlers; does nothing outside the main thread."""
        if _in_main_thread():
            for signum in HANDLED_SIGNALS:
                signal.signal(signum, self._handle)

    def check(self) -> None:
        """Raise `StopRequested` if a signal has been received."""
        if self.signum is not None:
            raise StopRequested(self.signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:  # already stopping
            return
        self.signum = signum
        self.forward_signal(signum)
        if not self.deferred:
            raise StopRequested(signum)


def slurm_job_name() -> str | None:
    """Return the number of the current SLURM job, or ARRAY_TASK; None outside a SLURM job."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requeue_slurm_job() -> str | None:
    """Requeue the current SLURM job.

    Returns:
        Its job number, or None outside a SLURM job.

    Raises:
        OSError, subprocess.SubprocessError: SLURM refused.
    """
    name = slurm_job_name()
    if name is None:
        return None
    command = ["scontrol", "requeue", name]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return name


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
