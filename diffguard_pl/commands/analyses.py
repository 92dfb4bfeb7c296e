"""What ``diffguard-pl analyze``, ``analyze inversion`` and ``analyze labels`` have in common."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..callbacks import RunProgress
from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..errors import InputError
from ..evaluation.analysis import AnalysisModule
from ..runs.files import atomic_write
from ..runs.lock import releasing_locks
from ..runs.record import CONFIG_FILE
from .cli import AnalyzeCLI, command_line
from .errors import end_with_images_left_out, one_line_errors

AnyModule = TypeVar("AnyModule", bound=AnalysisModule)


def analyse(
    kind: type[AnalyzeCLI],
    args: Sequence[str],
    command: str,
    build: Callable[[DiffGuard, Any, OODData, bool], AnyModule],
    write: Callable[[AnyModule, Path], None],
) -> None:
    """Run an analysis and write its results into the folder of the run.

    Args:
        kind: Class that declares the settings of the command.
        args: Arguments of the command.
        command: Name of the command.
        build: Class of the module, or function that builds it, of the DiffGuard, the settings of
            the analysis, the data and ``model.tf32``.
        write: Writes and prints the results; called on the first rank.
    """
    with one_line_errors(), releasing_locks():
        cli = command_line(kind, args, [RunProgress()], command)
        module = build(cli.model.diffguard, cli.config_init.analysis, cli.data, cli.model.tf32)
        cli.trainer.test(module, verbose=False)
        if not cli.trainer.is_global_zero:
            return
        if module.count == 0:
            raise InputError(
                f"{', '.join(module.datasets)}: none of the {module.left_out} images could be "
                "used; see `diffguard-pl data check`"
            )
        folder = Path(cli.trainer.default_root_dir)
        with atomic_write(folder / CONFIG_FILE) as unfinished:
            unfinished.write_text(cli.parser.dump(cli.config, skip_none=False), encoding="utf-8")
        write(module, folder)
        end_with_images_left_out(module.left_out)
