"""Batches that fill across requests: one thread owns the detector and takes what is waiting.

Scores do not depend on the batch, so that neither do decisions.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..errors import one_line

Item = dict[str, Any]
"""Prepared image, as of :class:`~diffguard_pl.datamodules.reading.Prepared`."""
Record = dict[str, Any]
"""Decision on an image, as a line of ``diffguard-pl score``."""
MAX_FAILURES = 10
"""Number of successive images on which the detector may fail before it counts as broken."""


@dataclass(frozen=True)
class Batching:
    """How requests become batches; `Batching()` has the defaults of the command.

    Attributes:
        max_batch: Largest number of images in a batch.
        max_wait_ms: Milliseconds that the detector, when it is free, waits at most for a batch to
            fill.
        max_queue: Largest number of images that have been accepted and not been answered.
    """

    max_batch: int = 32
    max_wait_ms: float = 10
    max_queue: int = 128


class Stopped(Exception):
    """The thread takes no images any more."""


@dataclass
class _Job:
    """An image that waits for its decision."""

    item: Item
    answer: "Future[Record]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Thread that decides on the images of several requests at a time, in their order.

    Args:
        decide: Maps 1 to ``max_batch`` items to their records. Called in this thread alone.
        batching: Sizes and waiting time.
        record: Called with each record before it is given out, from any thread, one call at a
            time, such as :meth:`~diffguard_pl.deploy.decision_log.DecisionLog.write`. If it fails,
            the thread ends: what cannot be recorded is not given out.
        on_start: Called in this thread when it begins.
        on_batch: Called with the size of each batch.
        on_end: Called when the thread has ended by a failure.

    Attributes:
        failure: What has ended the thread; None unless it failed.
    """

    def __init__(
        self,
        decide: Callable[[Sequence[Item]], list[Record]],
        batching: Batching,
        record: Callable[[Record], Any] = lambda line: None,
        on_start: Callable[[], Any] = lambda: None,
        on_batch: Callable[[int], Any] = lambda size: None,
        on_end: Callable[[], Any] = lambda: None,
    ):
        self._decide, self._record = decide, record
        self._on_start, self._on_batch, self._on_end = on_start, on_batch, on_end
        self._max_batch, self._max_wait = batching.max_batch, batching.max_wait_ms / 1000
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._recording = threading.Lock()
        self._is_open = True
        self._failures = 0
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="detector", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Record]":
        """Have an image decided on.

        Args:
            item: Item with ``image``.

        Returns:
            Future of its record, which has ``error`` if the detector failed on the image.

        Raises:
            Stopped: The thread takes no images any more.
        """
        job = _Job(item)
        job.answer.set_running_or_notify_cancel()  # from here on it cannot be cancelled
        with self._changed:
            if not self._is_open:
                raise Stopped
            self._waiting.append(job)
            self._changed.notify()
        return job.answer

    def record(self, line: Record) -> None:
        """Record that an image could not be read.

        Raises:
            Stopped: It could not be recorded, or the thread has ended.
        """
        if not self.is_alive:
            raise Stopped
        try:
            self._write(line)
        except Exception as error:
            self._fail(error, [])
            raise Stopped from error

    @property
    def is_alive(self) -> bool:
        """Whether the thread takes images."""
        return self._is_open and self._thread.is_alive()

    @property
    def is_broken(self) -> bool:
        """Whether the detector failed on each of the latest `MAX_FAILURES` images."""
        return self._failures >= MAX_FAILURES

    @property
    def queue_length(self) -> int:
        """Number of images that wait for the detector."""
        return len(self._waiting)

    def close(self) -> None:
        """Take no further images, decide on all that wait, and end the thread."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        jobs: list[_Job] = []
        try:
            self._on_start()
            while jobs := self._next_batch():
                self._answer(jobs)
        except BaseException as error:  # nobody above would hear of it
            self._fail(error, jobs)

    def _next_batch(self) -> list[_Job]:
        """Wait for images; return none once the thread is to end."""
        free_since = time.monotonic()
        with self._changed:
            while not self._waiting and self._is_open:
                self._changed.wait()
            if not self._waiting:
                return []
            # Wait after a batch, too: clients that have just been answered send their next images a
            # moment later. Otherwise they and those that waited would alternate in half batches.
            deadline = max(self._waiting[0].arrived, free_since) + self._max_wait
            while len(self._waiting) < self._max_batch and self._is_open:
                seconds_left = deadline - time.monotonic()
                if seconds_left <= 0:
                    break
                self._changed.wait(seconds_left)
            count = min(len(self._waiting), self._max_batch)
            return [self._waiting.popleft() for _ in range(count)]

    def _answer(self, jobs: Sequence[_Job]) -> None:
        self._on_batch(len(jobs))
        for job, line in zip(jobs, self._decided([job.item for job in jobs]), strict=True):
            self._failures = self._failures + 1 if "error" in line else 0
            self._write(line)
            job.answer.set_result(line)

    def _decided(self, items: Sequence[Item]) -> list[Record]:
        """Return the records of images; those of a batch that fails are decided on one by one."""
        try:
            return list(self._decide(items))
        except Exception as error:
            if len(items) > 1:
                return [line for item in items for line in self._decided([item])]
            path = items[0]["path"]
            reason = one_line(f"{type(error).__name__}: {error}")
            print(f"{path}: the detector failed ({reason})", file=sys.stderr, flush=True)
            return [{"path": path, "error": f"the detector failed ({reason})"}]

    def _write(self, line: Record) -> None:
        with self._recording:
            self._record(line)

    def _fail(self, error: BaseException, jobs: Sequence[_Job]) -> None:
        """End the thread, and every image's wait for an answer."""
        with self._changed:
            is_first, self._is_open = self.failure is None, False
            self.failure = self.failure or error
            left = [*jobs, *self._waiting]
            self._waiting.clear()
            self._changed.notify()
        for job in left:
            if not job.answer.done():
                job.answer.set_exception(Stopped())
        if is_first:
            self._on_end()
