"""The command ``diffguard-pl serve --detector detector.json``: decisions on images over HTTP.

Exit status: 0 after SIGTERM or Ctrl-C, when everything that was accepted has been answered; 1 on an
error; 2 on invalid arguments.
"""

import argparse
import math
import signal
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from ..deploy.decision_log import DecisionLog
from ..errors import InputError
from ..runs.signals import GracefulTermination
from ..serve.batching import Batching
from ..web.hosts import AllowedHosts
from ..web.limits import Limits
from .detector_options import add_detector_options, hash_of_detector, load_detector
from .errors import ignore_ctrl_c_at_exit, one_line_errors, require
from .server_options import add_server_options, in_one_thread, limits_of, listen, url

if TYPE_CHECKING:
    from ..serve.server import Server

PORT = 8000
WAYS_TO_END = (signal.SIGINT, signal.SIGTERM)
"""Signals that are how to end the server, and not an interruption."""


def main(args: list[str] | None = None) -> None:
    """Decide on images over HTTP until a signal ends it.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    given = parser().parse_args(args)
    with one_line_errors() as stop:
        run(given, batching_of(given), limits_of(given), stop)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl serve",
        description="Decide on images over HTTP: POST an image to /v1/decisions. Also /health and "
        "/metrics. SIGTERM and Ctrl-C end it when all that was accepted is answered.",
    )
    add = parser.add_argument
    add_detector_options(parser)
    add_server_options(parser, PORT, str(PORT))
    add(
        "--max-batch",
        type=int,
        default=Batching.max_batch,
        help="largest number of images that are decided on at a time (default: %(default)s)",
    )
    add(
        "--max-wait-ms",
        type=float,
        default=Batching.max_wait_ms,
        help="milliseconds to wait at most for a batch to fill (default: %(default)g)",
    )
    add(
        "--max-queue",
        type=int,
        default=Batching.max_queue,
        help="largest number of images that are accepted and not yet answered; further requests "
        "get status 503 (default: %(default)s)",
    )
    add(
        "--log",
        type=Path,
        metavar="FILE",
        help="write decisions to this file, too, as score --out does; a file of the same detector "
        "is continued",
    )
    return parser


def batching_of(given: argparse.Namespace) -> Batching:
    """Return how the options form batches.

    Raises:
        InputError: One is out of range.
    """
    if given.max_batch < 1:
        raise InputError(f"--max-batch {given.max_batch}: must be at least 1")
    if not 0 <= given.max_wait_ms < math.inf:
        raise InputError(f"--max-wait-ms {given.max_wait_ms:g}: must be at least 0 and finite")
    if given.max_queue < given.max_batch:
        raise InputError(
            f"--max-queue {given.max_queue}: must be at least --max-batch, {given.max_batch}"
        )
    return Batching(given.max_batch, given.max_wait_ms, given.max_queue)


def run(
    given: argparse.Namespace, batching: Batching, limits: Limits, stop: GracefulTermination
) -> None:
    """Load a detector and serve it.

    Args:
        given: Parsed arguments of the command.
        batching: How requests become batches.
        limits: Limits on an image.
        stop: Termination that handles the signals.

    Raises:
        InputError: A package is not installed, the port is taken, a further host is not a host
            name, the detector cannot be loaded, or the log cannot be written.
        StopRequested: Another signal than SIGINT or SIGTERM has ended it.
    """
    require("fastapi", "uvicorn")
    with ExitStack() as stack:
        # Open what may be in use first: loading the detector takes seconds.
        listener = stack.enter_context(listen(given.host, given.port))
        hosts = AllowedHosts(given.host, listener.getsockname()[0], given.allow_host)
        log = None
        if given.log:
            log = DecisionLog(given.log, resume=True, go_on="start the server again")
            stack.enter_context(closing(log))
        with in_one_thread():
            detector = load_detector(given)
        if log:
            log.begin(hash_of_detector(given.detector), detector.tpr)
        from ..serve.server import Server

        record = log.write if log else lambda line: None
        server = Server(detector, hosts, batching, limits, record)
        _end_on_signals(server, stop)
        print(f"{url(listener)}  (Ctrl-C ends it)", flush=True)
        server.run(listener)
    if stop.signum is not None:
        ignore_ctrl_c_at_exit()
        print(_summary(server, stop.signum), file=sys.stderr)
        if stop.signum not in WAYS_TO_END:
            stop.check()


def _end_on_signals(server: "Server", stop: GracefulTermination) -> None:
    """Have the first signal end the server in order, and a further Ctrl-C at once."""

    def end(signum: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        server.stop()

    stop.forward_signal, stop.deferred = end, True
    if stop.signum is not None:  # before the two lines above
        server.stop()


def _summary(server: "Server", signum: int) -> str:
    images = server.metrics.images
    text = f"{images['accept']} accepted, {images['reject']} rejected"
    if images["error"]:
        text += f", {images['error']} could not be judged"
    return f"stopped by {signal.Signals(signum).name}; {text}"
