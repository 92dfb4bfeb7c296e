"""The command ``diffguard-pl demo``: a web page to try a detector on."""

import argparse
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..runs.signals import StopRequested
from ..web.hosts import AllowedHosts
from ..web.limits import Limits
from .errors import ignore_ctrl_c_at_exit, one_line_errors, require
from .server_options import add_server_options, in_one_thread, limits_of, listen, url

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
        run(given.detector, given.host, given.port, limits_of(given), given.allow_host)


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
    add_server_options(parser, None, f"the first free one from {PORTS[0]}")
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
        InputError: Gradio is not installed, the port is taken, a further host is not a host name,
            or the detector cannot be loaded.
    """
    require("gradio")
    with (
        listen(host, port, PORTS) as listener,
        tempfile.TemporaryDirectory(prefix="diffguard-demo-") as folder,
    ):
        hosts = AllowedHosts(host, listener.getsockname()[0], extra_hosts)
        from ..deploy.detector import Detector

        with in_one_thread():
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
