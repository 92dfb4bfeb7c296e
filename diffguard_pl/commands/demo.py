"""The demo command: ``diffguard-pl demo``; ``--detector FILE`` for one of your own."""

import argparse
import os
import signal
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ..demo.limits import Limits
from ..errors import InputError

PORTS = range(7860, 7960)
SHIPPED = "digits_ldm"
"""The detector that comes with the package: made by recipes/digits_detector.py."""


def main(args: list[str] | None = None) -> None:
    """Serve the page as the command line says, until Ctrl-C."""
    given = parser().parse_args(args)
    try:
        run(given.detector, given.host, given.port, Limits(given.max_mb, given.max_megapixels))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python takes seconds to put torch away
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def parser() -> argparse.ArgumentParser:
    """What the command line may say."""
    options = argparse.ArgumentParser(
        prog="diffguard-pl demo", description="A web page to try a detector on."
    )
    options.add_argument(
        "--detector",
        type=Path,
        help="file that diffguard-pl calibrate wrote; none: the embedded one, of digits",
    )
    options.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only)",
    )
    options.add_argument(
        "--port", type=int, help=f"default: the first that is free from {PORTS[0]}"
    )
    options.add_argument(
        "--max-mb",
        type=float,
        default=Limits().megabytes,
        help="largest upload (default: %(default)g)",
    )
    options.add_argument(
        "--max-megapixels",
        type=float,
        default=Limits().megapixels,
        help="most pixels of an image (default: %(default)g million)",
    )
    return options


def run(detector: Path | None, host: str, port: int | None, limits: Limits) -> None:
    """Load a detector and serve the page.

    Raises:
        InputError: Gradio is not installed, the port is taken, the detector cannot be loaded, or a limit is none.
    """
    if find_spec("gradio") is None:
        raise InputError("the web demo needs Gradio: pip install 'diffguard-pl[demo]'")
    for name, value in (("--max-mb", limits.megabytes), ("--max-megapixels", limits.megapixels)):
        if not value > 0:
            raise InputError(f"{name} {value:g}: expected more than 0")
    signal.signal(signal.SIGTERM, _end)  # so that the folder below is removed
    with (
        listening(host, port) as listener,
        tempfile.TemporaryDirectory(prefix="diffguard-demo-") as folder,
    ):
        from ..deploy.detector import Detector

        loaded = Detector.load(detector or SHIPPED)
        # Gradio reads these when it is imported: uploads go where they can be removed, and nobody is told
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from ..demo.examples import takes_digits, write_examples
        from ..demo.page import page, serve

        examples = write_examples(Path(folder)) if takes_digits(loaded) else {}
        blocks = page(loaded, examples, limits)
        print(f"{url(listener)}  (Ctrl-C ends it)", flush=True)
        serve(blocks, listener, limits, Path(folder))


def listening(host: str, port: int | None) -> socket.socket:
    """A socket on that port, or on the first that is free.

    Raises:
        InputError: there is none.
    """
    if port is not None and not 0 <= port < 2**16:
        raise InputError(f"--port {port}: expected 0 to {2**16 - 1}")
    for candidate in [port] if port is not None else PORTS:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            return socket.create_server(address[:2], family=family)
        except OSError as error:
            reason = error
            if isinstance(error, socket.gaierror):
                break
    where = f"--host {host}" + (
        f" --port {port}" if port is not None else f", ports {PORTS[0]} to {PORTS[-1]}"
    )
    said = (reason.strerror or str(reason)).partition(" (while")[0]
    raise InputError(f"{where}: {said}; give another with --port or --host")


def url(listener: socket.socket) -> str:
    """Where the page is."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
