"""Standard output and error, the loss of which does not end a command.

A reader that has seen enough (``| head -1``), a full disk below a log, a terminal that is gone:
what is printed from then on is lost, and nothing else.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class LastingStream:
    """Text stream that drops what it cannot write, from its first failure on.

    Args:
        stream: Stream to write to.

    Attributes:
        failure: Why nothing is written any more, or None.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        if self.failure is None:
            try:
                self._write(text)
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        if self.failure is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        """Write a text, with an escape sequence for each character that the encoding lacks."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _lose(self, error: Exception) -> None:
        """Keep the failure, and let the stream's buffer vanish, which Python flushes at its end."""
        self.failure = error
        with suppress(OSError, ValueError):  # of a stream without a descriptor
            descriptor = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Keep going without standard output or standard error if they are closed or fail."""
    if isinstance(sys.stdout, LastingStream):
        yield
        return
    _open_closed_descriptors()
    given = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
    try:
        yield
        _report_loss()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = given


def lost_output() -> Exception | None:
    """Return why nothing can be written to standard output any more, or None."""
    return sys.stdout.failure if isinstance(sys.stdout, LastingStream) else None


def _lasting(stream: TextIO | None) -> TextIO:
    # Python has no stream for a closed descriptor.
    return cast(TextIO, LastingStream(stream or open(os.devnull, "w")))


def _report_loss() -> None:
    """Say that lines are lost, unless their reader has gone of its own accord."""
    sys.stdout.flush()
    failure = lost_output()
    if failure is not None and not isinstance(failure, BrokenPipeError):
        reason = getattr(failure, "strerror", None) or failure
        print(f"standard output: cannot be written ({reason}); lines are lost", file=sys.stderr)


def _open_closed_descriptors() -> None:
    """Open the null device for closed standard streams; a file would get their descriptor."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
