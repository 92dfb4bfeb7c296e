"""The other ranks of a test: what they have, and waiting for them."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from ..errors import InputError

POLL_SECONDS = 0.02


def gather(value: Any, world_size: int) -> list[Any]:
    """Return the value of each rank, in their order; all ranks must call it."""
    if world_size == 1:
        return [value]
    gathered = [None] * world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered


class PatientBarrier:
    """A barrier of all ranks without a time limit.

    Ranks may finish hours apart. An ordinary collective operation would time out, and ignore
    signals while it waits.

    Args:
        world_size: Number of ranks.
    """

    def __init__(self, world_size: int):
        self.group: Any = None
        if world_size > 1:
            self.group = torch.distributed.new_group(timeout=timedelta(days=30), backend="gloo")

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Wait until all ranks are here.

        Args:
            meanwhile: Function called again and again; may raise to end the wait.

        Raises:
            InputError: Another rank has ended.
        """
        if self.group is None:
            return
        work = torch.distributed.barrier(group=self.group, async_op=True)
        try:
            while not work.is_completed():
                meanwhile()
                time.sleep(POLL_SECONDS)
            work.wait()
        except RuntimeError as error:
            raise InputError(
                "another rank has ended; written results are kept, and --resume continues the run"
            ) from error
