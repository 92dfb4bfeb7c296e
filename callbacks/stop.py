"""A test ends in good order when it is told to, and when another rank is gone."""

import os
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.runs.signals import GracefulTermination


class GracefulStop(pl.Callback):
    """Stops a test within a step of the diffusion model after SIGTERM, SIGUSR1 or SIGUSR2, with
    :class:`~diffguard_pl.runs.signals.StopRequested`: what is scored is written, images on their way are dropped.

    A rank whose starter (the first rank, or torchrun) is gone stops, too.

    Args:
        stop: that listens already; none: one is made.
    """

    def __init__(self, stop: GracefulTermination | None = None):
        self.stop = stop or GracefulTermination()

    def on_test_start(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        self.stop.install_handlers()  # Lightning has put its own in place, which broadcasts where other ranks do not listen
        self.stop.deferred = True
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            self.stop.forward_signal = launcher.kill
        # a process that a shell has started may well outlive it
        self.starter = os.getppid() if trainer.global_rank > 0 else None
        pl_module.between_steps.append(self.check)

    def on_test_batch_start(self, *_: Any) -> None:
        self.check()

    def check(self) -> None:
        """Raise if this rank should stop."""
        self.stop.check()
        if self.starter is not None and os.getppid() != self.starter:
            raise InputError(
                "the process that started this one is gone; what is scored is kept, and --resume goes on with the run"
            )
