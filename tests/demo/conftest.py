"""The demo as a process, for all tests that talk to it."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

READY_IN = 90
"""Seconds, generous for a busy machine."""
LOOPBACK_ONLY = """
import os, sys


def watch(event, args):
    if event != "socket.connect" or not isinstance(args[1], tuple):
        return
    if not args[1][0].startswith(("127.", "::1", "localhost")):
        print("CONNECTED TO", args[1], flush=True)
        os._exit(3)


sys.addaudithook(watch)
"""


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Iterator[str]:
    """The demo as a process that ends if it connects to another machine; Ctrl-C ends it cleanly."""
    pytest.importorskip("gradio", reason="gradio, of the extra demo, is not installed")
    folder = tmp_path_factory.mktemp("server")
    (folder / "sitecustomize.py").write_text(LOOPBACK_ONLY)
    uploads = folder / "tmp"
    uploads.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "TMPDIR": str(uploads),
        "OMP_NUM_THREADS": "1",
    }
    with (
        (folder / "said").open("w+") as said,
        subprocess.Popen(
            [sys.executable, "-m", "diffguard_pl", "demo", "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], READY_IN)[0], "it says nothing"
            line = process.stdout.readline()
            assert line == f"http://127.0.0.1:{port}  (Ctrl-C ends it)\n", (
                folder / "said"
            ).read_text()
            yield line.split()[0]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0, (folder / "said").read_text()
            assert process.stdout.read() == ""
            assert (folder / "said").read_text() == ""
            assert list(uploads.glob("diffguard-demo-*")) == [], "what was uploaded is gone"
        finally:
            process.kill()
