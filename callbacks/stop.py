"""Graceful termination of a test, on a signal or when another rank has ended."""

import os
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.runs.signals import GracefulTermination


class GracefulStop(pl.Callback):
    """Stops a test within one step of the diffusion model after SIGTERM, SIGUSR1 or SIGUSR2.

    :class:`~diffguard_pl.runs.signals.StopRequested` is raised then. Finished scores are written;
    images still in the diffusion model are dropped. A rank whose parent process (the first rank,
    or torchrun) has ended stops as well.

    Args:
        stop: Termination that already handles the signals. Defaults to a new one.
    """

    def __init__(self, stop: GracefulTermination | None = None):
        self.stop = stop or GracefulTermination()

    def on_test_start(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        # Lightning has installed its own handlers. They broadcast, and wait for ranks that do not
        # take part.
        self.stop.install_handlers()
        self.stop.deferred = True
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            self.stop.forward_signal = launcher.kill
        # the first rank may outlive its parent: a shell that has started it in the background
        self.parent = os.getppid() if trainer.global_rank > 0 else None
        pl_module.between_steps.append(self.check)

    def on_test_batch_start(self, *_: Any) -> None:
        self.check()

    def check(self) -> None:
        """Raise an error if this rank should stop."""
        self.stop.check()
        if self.parent is not None and os.getppid() != self.parent:
            raise InputError(
                "the process that started this one has ended; "
                "finished scores are kept, and --resume continues the run"
            )
