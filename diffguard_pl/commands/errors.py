"""How commands end: errors in one line, exit statuses, and interruptions that can be resumed.

Nothing here imports torch.
"""

import atexit
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import SubprocessError
from typing import NoReturn

from ..errors import InputError, one_line
from ..runs.record import CONFIG_FILE
from ..runs.signals import REQUEUE_SIGNALS, GracefulTermination, StopRequested, requeue_slurm_job
from .output import lasting_output

LEFT_OUT = 3
"""Exit status of a run that is complete except for unusable images.

1 is an error, 2 means invalid arguments.
"""

START_AGAIN = "the same command starts again"
WORKER_IS_LOST = r"DataLoader worker \(pid|Too many open files|Pin memory thread exited"


@contextmanager
def one_line_errors(
    go_on: str = START_AGAIN,
) -> Iterator[GracefulTermination]:
    """End the process with one line on errors that a user can correct, and on a signal.

    Other errors pass. Lost output ends nothing.

    Args:
        go_on: How to go on after a signal such as Ctrl-C.

    Yields:
        The termination that handles the signals.
    """
    with lasting_output(), GracefulTermination().handling_signals() as stop:
        try:
            yield stop
        except (StopRequested, KeyboardInterrupt) as stopped:
            end_stopped(getattr(stopped, "signum", signal.SIGINT), go_on)
        except (InputError, OSError) as error:
            sys.exit(f"error: {one_line(str(error))}")
        except Exception as error:
            line = _known_error(error)
            if line is None:
                raise
            sys.exit(f"error: {one_line(line)}")


def _known_error(error: Exception) -> str | None:
    """Return the line for an error of Python, torch or Lightning, or None for any other."""
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    lines = str(error).strip().splitlines()
    first_line = lines[0] if lines else ""
    if any(name.endswith(".MisconfigurationException") for name in names):
        return " ".join(str(error).split())
    if any(name.endswith(".OutOfMemoryError") for name in names):
        return f"{first_line} Lower model.slots or data.batch_size; --resume keeps what is scored"
    if isinstance(error, MemoryError) or "can't allocate memory" in first_line:
        reason = f" ({first_line})" if first_line else ""
        return (
            f"out of memory{reason}; lower model.slots, data.batch_size or data.num_workers; "
            "--resume keeps what is scored"
        )
    if isinstance(error, RecursionError):
        return f"a file or setting nests too deep ({first_line}); flatten it"
    if any(name.startswith(("torch._dynamo", "torch._inductor")) for name in names):
        return f"model.compile: cannot compile the diffusion model ({first_line}); set it to false"
    # torch reports the loss of a process that reads images, and nothing else, in these words
    if isinstance(error, RuntimeError) and re.match(WORKER_IS_LOST, first_line):
        return (
            f"data.num_workers, --workers: a process that reads images is lost ({first_line[:200]}"
            "); lower it, or allow more open files (ulimit -n), memory and shared memory"
        )
    return None


def end_stopped(signum: int, go_on: str, requeues: bool = False) -> NoReturn:
    """Print in one line which signal has ended the command and how to go on.

    Args:
        signum: Number of the signal. The exit status is 128 more.
        go_on: How to go on.
        requeues: Whether to requeue a SLURM job that was warned. Defaults to False.
    """
    _exit_quietly_unless_first_rank()
    _say(f"stopped by {signal.Signals(signum).name}; {go_on}")
    if requeues and signum in REQUEUE_SIGNALS:
        _requeue()
    ignore_ctrl_c_at_exit()
    sys.exit(128 + signum)


def end_of_stopped_run(stopped: StopRequested, folder: str, command: str) -> NoReturn:
    """Requeue a SLURM job that was warned, print how to resume, and exit with the signal's status.

    Args:
        stopped: The signal.
        folder: Folder of the run, empty if it had none yet.
        command: Name of the command, such as ``test``.
    """
    has_begun = bool(folder) and (Path(folder) / CONFIG_FILE).is_file()
    resume = f"to resume: diffguard-pl {command} --resume {folder}"
    end_stopped(stopped.signum, resume if has_begun else START_AGAIN, requeues=True)


def _requeue() -> None:
    try:
        if job := requeue_slurm_job():
            _say(f"SLURM job {job} is requeued and resumes by itself")
    except (OSError, SubprocessError) as error:
        reason = str(getattr(error, "stderr", None) or error)
        _say(f"cannot requeue the SLURM job: {' '.join(reason.split())}")


def _exit_quietly_unless_first_rank() -> None:
    """End another rank than the first: any status but 0 would have the first one killed."""
    if "pytorch_lightning" not in sys.modules:
        return
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        sys.exit()


def ignore_ctrl_c_at_exit() -> None:
    """Ignore further Ctrl-C: Python takes seconds to unload torch, and would print a traceback."""
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def end_with_images_left_out(count: int) -> None:
    """End with status `LEFT_OUT` if images could not be used."""
    if count:
        _say(f"{count} images could not be used; see the column error of the scores")
        sys.exit(LEFT_OUT)


def require(*packages: str) -> None:
    """Raise an `InputError` with the command to install an optional dependency that is missing.

    Args:
        packages: Names of the packages that are needed, which are the names of their modules.
    """
    from lightning_utilities.core.imports import RequirementCache

    for package in packages:
        if not RequirementCache(package):
            raise InputError(f"{package} is not installed; pip install {' '.join(packages)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
