"""The command ``diffguard-pl demo``: a web page to try a detector on."""

import argparse
import math
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..runs.signals import StopRequested
from ..web.hosts import AllowedHosts
from ..web.limits import Limits
from .errors import ignore_ctrl_c_at_exit, one_line_errors, require
from .listening import listen, url

PORTS = range(7860, 7960)
SHIPPED = "digits_ldm"
"""Detector that the package contains, written by recipes/digits_detector.py."""


def main(args: list[str] | None = None) -> None:
    """Serve the page until Ctrl-C.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    given = parser().parse_args(args)
    with one_line_errors():
        limits = Limits(given.max_mb, given.max_megapixels)
        run(given.detector, given.host, given.port, limits, given.allow_host)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl demo", description="Serve a web page to try a detector."
    )
    parser.add_argument(
        "--detector",
        type=Path,
        help="file that diffguard-pl calibrate wrote (default: the package's, for digits)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only)",
    )
    parser.add_argument(
        "--port", type=int, help=f"port to listen on (default: the first free one from {PORTS[0]})"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further host name of the page, such as that of a reverse proxy; may be repeated "
        "(default: the names and addresses of this machine)",
    )
    parser.add_argument(
        "--max-mb",
        type=float,
        default=Limits().megabytes,
        help="largest upload in MB (default: %(default)g)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        default=Limits().megapixels,
        help="largest image in millions of pixels (default: %(default)g)",
    )
    return parser


def run(
    detector: Path | None,
    host: str,
    port: int | None,
    limits: Limits,
    extra_hosts: Sequence[str] = (),
) -> None:
    """Load a detector and serve the page.

    Raises:
        InputError: Gradio is not installed, a limit is not positive, the port is taken, a further
            host is not a host name, or the detector cannot be loaded.
    """
    require("gradio")
    for name, value in (("--max-mb", limits.megabytes), ("--max-megapixels", limits.megapixels)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} {value:g}: must be more than 0 and finite")
    with (
        listen(host, port, PORTS) as listener,
        tempfile.TemporaryDirectory(prefix="diffguard-demo-") as folder,
    ):
        hosts = AllowedHosts(host, listener.getsockname()[0], extra_hosts)
        from ..deploy.detector import Detector

        loaded = Detector.load(detector or SHIPPED)
        # Gradio reads these on import: uploads go where they are removed, and no usage is reported.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from ..demo.examples import takes_digits, write_examples
        from ..demo.page import page, serve

        examples = write_examples(Path(folder)) if takes_digits(loaded) else {}
        blocks = page(loaded, examples, limits)
        print(f"{url(listener)}  (Ctrl-C ends it)", flush=True)
        try:
            serve(blocks, listener, hosts, limits, Path(folder))
        except StopRequested as stopped:
            if stopped.signum != signal.SIGINT:  # which is how to end the demo
                raise
            ignore_ctrl_c_at_exit()
