"""TODO."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import SubprocessError
from typing import NoReturn

import torch
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ..config_errors import ORDER, inside, unknown
from ..errors import InputError
from ..runs.signals import REQUEUE_SIGNALS, StopRequested, requeue_slurm_job

LEFT_OUT = 3
"""Exit status of a run that is complete but for images that could not be used; 1 is an error, 2 a mistake in the arguments."""


def end(stopped: StopRequested, folder: str, name: str = "test") -> NoReturn:
    """Say how to go on, have a SLURM job that was warned put back into the queue, and end with the status of the signal."""
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        sys.exit()  # another status would have the first rank killed while it writes
    print(
        f"stopped by {stopped}; python -m diffguard_pl.{name} --resume {folder or 'RUN_DIR'} goes on",
        file=sys.stderr,
        flush=True,
    )
    if stopped.signum in REQUEUE_SIGNALS:
        try:
            if job := requeue_slurm_job():
                print(
                    f"SLURM job {job} is in the queue again, and goes on by itself",
                    file=sys.stderr,
                    flush=True,
                )
        except (OSError, SubprocessError) as error:
            said = getattr(error, "stderr", None) or error
            print(
                f"the SLURM job could not be put into the queue again: {' '.join(str(said).split())}",
                file=sys.stderr,
                flush=True,
            )
    sys.exit(128 + stopped.signum)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line for what a user can mend."""
    try:
        yield
    except (InputError, MisconfigurationException, OSError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError):
            sys.exit(
                f"error: {first} Lower model.slots or data.batch_size; --resume goes on with what is scored"
            )
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            sys.exit(
                f"error: the diffusion model could not be compiled ({first}); set model.compile to false"
            )
        raise


class Parser(LightningArgumentParser):
    """Answers a mistake in one line, with what there is in place of what was misspelt."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if (
            not self.exit_on_error
        ):  # the parser of a class inside a setting: the outer one says what is wrong
            super().error(message, ex)
        line = re.sub(r"\s*\n\s*", " ", message).strip()
        self.exit(2, f"error: {self._explained(line)}\n")

    def _explained(self, line: str) -> str:
        if said := inside(line):
            return said
        if found := re.search(
            r"key \"([\w.]+)\": Expected an instantiatable class.* is abstract", line
        ):
            return f"no settings of {found[1]}: {ORDER}"
        for pattern in (
            r"[Uu]nrecognized arguments: --([\w.]+)",
            r"ambiguous option: --([\w.]+)",
            r"Option '([\w.]+)' is not accepted",
            r"Group '([\w.]+)' does not accept option '([\w.]+)'",
        ):
            if found := re.search(pattern, line):
                return self._no_setting(".".join(found.groups()))
        return line

    def _no_setting(self, key: str) -> str:
        known = {
            action.dest
            for action in self._actions
            if action.dest not in ("help", "print_config", "==SUPPRESS==")
        }
        parent = key
        while parent and not any(name.startswith(f"{parent}.") for name in known):
            parent = parent.rpartition(".")[0]
        depth = parent.count(".") + 1 if parent else 0
        siblings = {
            name.split(".")[depth] for name in known if not parent or name.startswith(f"{parent}.")
        }
        option = key.removeprefix(f"{parent}.").split(".")[0]
        return unknown("setting", option, siblings, f"{parent}." if parent else "")
