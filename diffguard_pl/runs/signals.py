"""Graceful termination on Ctrl-C (SIGINT), SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2.

A scheduler or an operator sends SIGTERM, a terminal that closes SIGHUP; SLURM sends SIGUSR1 or
SIGUSR2 shortly before a job's time limit. callbacks/stop.py ends a test with them. Windows has
SIGINT and SIGTERM alone.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def _existing(*names: str) -> tuple[signal.Signals, ...]:
    """Return the signals of these names that the platform has; Windows lacks most."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


REQUEUE_SIGNALS = _existing("SIGUSR1", "SIGUSR2")
"""Signals that precede a job's time limit; the job is requeued after them.

``#SBATCH --signal=USR1@120`` sends the first, submitit the second.
"""
HANDLED_SIGNALS = (*_existing("SIGINT", "SIGTERM", "SIGHUP"), *REQUEUE_SIGNALS)
MAY_BE_IGNORED = _existing("SIGINT", "SIGHUP")
"""Signals that stay ignored if the parent ignores them: a shell for its background, nohup."""


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
        self.process = os.getpid()
        self.signum: int | None = None
        self.deferred = False
        self.forward_signal: Callable[[int], None] = lambda signum: None

    @contextmanager
    def handling_signals(self) -> Iterator["GracefulTermination"]:
        """Handle the signals until the block ends, then restore the earlier handlers.

        Does nothing outside the main thread, where Python does not allow signal handlers.

        Yields:
            This termination, or the one that handles the signals already.
        """
        if already := current_termination():
            yield already
            return
        if not _in_main_thread():
            yield self
            return
        earlier = {signum: signal.getsignal(signum) for signum in HANDLED_SIGNALS}
        self.install_handlers()
        try:
            yield self
        finally:
            for signum, handler in earlier.items():
                if handler is not None:  # not installed by Python
                    signal.signal(signum, handler)

    def install_handlers(self) -> None:
        """Replace the current signal handlers; does nothing outside the main thread."""
        if not _in_main_thread():
            return
        for signum in HANDLED_SIGNALS:
            is_ignored = signal.getsignal(signum) == signal.SIG_IGN
            if not (is_ignored and signum in MAY_BE_IGNORED):
                signal.signal(signum, self._handle)

    def check(self) -> None:
        """Raise `StopRequested` if a signal has been received."""
        if self.signum is not None:
            raise StopRequested(self.signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # A forked worker leaves a Ctrl-C, which reaches all processes of a terminal, to its parent.
        if self.signum is not None or os.getpid() != self.process:
            return
        self.signum = signum
        self.forward_signal(signum)
        if not self.deferred:
            raise StopRequested(signum)


def current_termination() -> GracefulTermination | None:
    """Return the termination that handles signals at the moment, or None."""
    handler = signal.getsignal(signal.SIGTERM)
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, GracefulTermination) else None


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
