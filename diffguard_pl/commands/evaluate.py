"""The evaluation command: ``python -m diffguard_pl.test --config ldm.yaml --trainer.devices 8``.

Without ``--config`` it runs the embedded digits benchmark. The command line is LightningCLI's: any setting of a config can be
given as ``--section.setting value``, ``--print_config`` shows them all.
"""

import sys

from ..callbacks import (
    GracefulStop,
    RunLogger,
)
from ..runs.lock import releasing_locks
from ..runs.signals import GracefulTermination, StopRequested
from .cli import CLI, command_line
from .errors import LEFT_OUT, end, one_line_errors


def main(args: list[str] | None = None) -> None:
    """Run a test as the command line says."""
    with one_line_errors(), releasing_locks(), GracefulTermination().handling_signals() as stop:
        folder = ""
        try:
            cli = command_line(CLI, args, callbacks=[RunLogger(), GracefulStop(stop)])
            folder = cli.folder
            cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        except StopRequested as stopped:
            end(stopped, folder)
        left_out = sum(cli.model.left_out.values())
        if (
            left_out and cli.trainer.is_global_zero
        ):  # another rank's exit status would have the whole run killed
            print(
                f"{left_out} images could not be used; the column error of the scores says why",
                file=sys.stderr,
            )
            sys.exit(LEFT_OUT)
