"""The server: it opens with a loaded detector, and ends when all that it accepted is answered."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import uvicorn

from ..deploy.detector import Detector
from ..web.hosts import AllowedHosts
from ..web.limits import Limits
from .app import Service, application
from .batching import Batcher, Batching, Record
from .metrics import Metrics
from .uploads import decide

LINGER = 0.25
"""Seconds from the request to end until connections close: what was sent before has arrived."""


class Server:
    """HTTP server around a detector.

    Args:
        detector: Calibrated detector.
        hosts: Hosts under which the server may be requested.
        batching: How requests become batches.
        limits: Limits on an image.
        record: Called with each decision before it is given out, see :class:`.Batcher`. Defaults to
            none.

    Attributes:
        metrics: What has been counted.
    """

    def __init__(
        self,
        detector: Detector,
        hosts: AllowedHosts,
        batching: Batching,
        limits: Limits,
        record: Callable[[Record], Any] = lambda line: None,
    ):
        self.metrics = Metrics()
        # The detector computes in as many threads as the caller, and threads of the reader would
        # slow them down: see commands.server_options.in_one_thread.
        self._reader = ThreadPoolExecutor(
            1, thread_name_prefix="reader", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._batcher = Batcher(
            partial(decide, detector),
            batching,
            record,
            on_start=partial(use_threads, torch.get_num_threads()),
            on_batch=self.metrics.batches.add,
            on_end=self.stop,
        )
        self._service = Service(
            detector, self._batcher, self._reader, self.metrics, limits, batching.max_queue
        )
        config = uvicorn.Config(
            application(self._service, hosts),
            lifespan="off",
            log_level="warning",
            server_header=False,
            ws="none",
        )
        self._uvicorn = _Uvicorn(config)

    def run(self, listener: socket.socket) -> None:
        """Serve until :meth:`stop` is called, then answer all that was accepted.

        Args:
            listener: Bound socket, which is closed.

        Raises:
            Exception: What ended the detector's thread, such as a decision that was not recorded.
        """
        try:
            self._uvicorn.run(sockets=[listener])
        finally:
            self._reader.shutdown()
            self._batcher.close()
        if self._batcher.failure is not None:
            raise self._batcher.failure

    def stop(self) -> None:
        """Have the server end. May be called from any thread and from a signal handler."""
        self._service.is_stopping = True
        self._uvicorn.should_exit = True


def use_threads(count: int) -> None:
    """Have PyTorch use a number of threads for what the calling thread computes from now on."""
    torch.set_num_threads(count)
    torch.get_num_threads()  # else the thread's first operation would take what another one sets


class _Uvicorn(uvicorn.Server):
    """uvicorn that leaves signals to the command, and connections a moment to become requests."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        # uvicorn closes a connection whose request it has not read yet.
        await asyncio.sleep(LINGER)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
