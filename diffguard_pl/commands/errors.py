"""How commands end: errors in one line, exit statuses, and interruptions that can be resumed.

Nothing here imports torch.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import SubprocessError
from typing import NoReturn

from ..errors import InputError
from ..runs.signals import REQUEUE_SIGNALS, StopRequested, requeue_slurm_job

LEFT_OUT = 3
"""Exit status of a run that is complete except for unusable images.

1 is an error, 2 means invalid arguments.
"""

WORKER_IS_LOST = r"DataLoader worker \(pid|Too many open files|Pin memory thread exited"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on errors that a user can correct; let others pass."""
    try:
        yield
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        line = _known_error(error)
        if line is None:
            raise
        sys.exit(f"error: {line}")


def _known_error(error: Exception) -> str | None:
    """Return the line for an error of torch or Lightning, by the names of its classes, or None."""
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    first_line = str(error).strip().partition("\n")[0]
    if any(name.endswith(".MisconfigurationException") for name in names):
        return str(error)
    if any(name.endswith(".OutOfMemoryError") for name in names):
        return f"{first_line} Lower model.slots or data.batch_size; --resume keeps what is scored"
    if any(name.startswith(("torch._dynamo", "torch._inductor")) for name in names):
        return f"model.compile: cannot compile the diffusion model ({first_line}); set it to false"
    # torch reports the loss of a process that reads images, and nothing else, in these words
    if isinstance(error, RuntimeError) and re.match(WORKER_IS_LOST, first_line):
        return (
            f"data.num_workers, --workers: a process that reads images is lost ({first_line[:200]}"
            "); lower it, or allow more open files (ulimit -n), memory and shared memory"
        )
    return None


def end_of_stopped_run(stopped: StopRequested, folder: str, command: str) -> NoReturn:
    """Requeue a SLURM job that was warned, print how to resume, and exit with the signal's status.

    Args:
        stopped: The signal.
        folder: Folder of the run, empty if it had none yet.
        command: Name of the command, such as ``test``.
    """
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    # Any other status of another rank would have the first one killed while it writes.
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        sys.exit()
    resume = f"diffguard-pl {command} --resume {folder or 'RUN_DIR'}"
    _say(f"stopped by {stopped}; to resume: {resume}")
    if stopped.signum in REQUEUE_SIGNALS:
        try:
            if job := requeue_slurm_job():
                _say(f"SLURM job {job} is requeued and resumes by itself")
        except (OSError, SubprocessError) as error:
            reason = str(getattr(error, "stderr", None) or error)
            _say(f"cannot requeue the SLURM job: {' '.join(reason.split())}")
    sys.exit(128 + stopped.signum)


def end_with_images_left_out(count: int) -> None:
    """End with status `LEFT_OUT` if images could not be used."""
    if count:
        _say(f"{count} images could not be used; see the column error of the scores")
        sys.exit(LEFT_OUT)


def require(package: str, extra: str) -> None:
    """Raise an `InputError` with the command to install an optional dependency that is missing.

    Args:
        package: Name of the package, which is the name of its module.
        extra: Extra of this package that installs it.
    """
    from lightning_utilities.core.imports import RequirementCache

    if not RequirementCache(package):
        raise InputError(f"{package} is not installed; pip install 'diffguard-pl[{extra}]'")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
