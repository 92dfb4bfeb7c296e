"""The command ``diffguard-pl test``, which is also ``python -m diffguard_pl.test``.

Without ``--config`` it runs the embedded digits benchmark. Any setting of a config can be given as
``--section.setting VALUE``; ``--print_config`` shows them all.
"""

from ..callbacks import GracefulStop, RunLogger
from ..runs.lock import releasing_locks
from ..runs.signals import StopRequested
from .cli import RunCLI, command_line
from .errors import end_of_stopped_run, end_with_images_left_out, one_line_errors


def main(args: list[str] | None = None) -> None:
    """Evaluate DiffGuard.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    with one_line_errors() as stop, releasing_locks():
        folder = ""
        try:
            cli = command_line(RunCLI, args, [RunLogger(), GracefulStop(stop)], "test")
            folder = cli.folder
            cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        except StopRequested as stopped:
            end_of_stopped_run(stopped, folder, "test")
        # On other ranks a status other than 0 would have the whole run killed.
        if cli.trainer.is_global_zero:
            end_with_images_left_out(sum(cli.model.left_out.values()))
