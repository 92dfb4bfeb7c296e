"""Python programs in processes of their own, forked from one that has imported everything already.

Importing torch, Lightning and diffusers takes most of the time of a short command. A server process
imports them once for each pytest worker; `start` and `run` have it fork. The standard streams of
the child, its arguments, environment and working directory are those that were asked for, so that
it differs from ``python -m MODULE`` in its start alone.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

IMPORTED = (
    "pandas",
    "pytorch_lightning",
    "diffusers.models.unets.unet_2d",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.vq_model",
    "piq",
    "plotly.offline",
    "sklearn.datasets",
    "torchvision.models",
    "diffguard_pl.commands.cli",
    "diffguard_pl.commands.evaluate",
    "diffguard_pl.commands.score",
    "diffguard_pl.datamodules.digits",
    "diffguard_pl.datamodules.ood",
    "diffguard_pl.report.build",
)

NUMBER = 16
"""Bytes in which the server sends a number."""


class Process:
    """A running program; the subset of `subprocess.Popen` that tests need.

    Attributes:
        pid: Number of the process.
        stdin: Its standard input, if that is piped.
        stdout: What it writes, if that is piped.
        stderr: The same for standard error.
    """

    def __init__(self, connection: socket.socket, pid: int, pipes: dict[str, IO]):
        self.pid = pid
        self.stdin = pipes.get("stdin")
        self.stdout, self.stderr = pipes.get("stdout"), pipes.get("stderr")
        self._connection = connection
        self._status: int | None = None

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()

    @property
    def returncode(self) -> int | None:
        return self._status

    def poll(self) -> int | None:
        """Return the exit status, or None while the program runs."""
        return self._receive(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the program has ended; return its exit status."""
        if self._receive(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        assert self._status is not None
        return self._status

    def communicate(self, timeout: float = 300) -> tuple[Any, Any]:
        """Read the pipes until nobody has them open for writing, and wait for the program."""
        read: dict[str, Any] = {}

        def read_pipe(name: str) -> None:
            read[name] = getattr(self, name).read()

        names = [name for name in ("stdout", "stderr") if getattr(self, name) is not None]
        threads = [threading.Thread(target=read_pipe, args=[name], daemon=True) for name in names]
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        self.wait(max(0.1, deadline - time.monotonic()))
        return read.get("stdout"), read.get("stderr")

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _receive(self, timeout: float | None) -> int | None:
        if self._status is None:
            self._connection.settimeout(timeout)
            with contextlib.suppress(BlockingIOError, TimeoutError):
                answer = self._connection.recv(NUMBER, socket.MSG_WAITALL)
                assert answer, "the server of preloaded processes has ended"
                self._status = int(answer)
                self._connection.close()
        return self._status


def start(
    args: list[str],
    cwd: Path | str | None = None,
    env: dict[str, str] | None = None,
    stdin: int | IO | None = None,
    stdout: int | IO | None = None,
    stderr: int | IO | None = None,
    text: bool = False,
    start_new_session: bool = False,
    fork_ranks: bool = False,
    server: str | None = None,
) -> Process:
    """Start ``python ARGS``; see `subprocess.Popen`.

    Args:
        args: ``-m MODULE`` or a path, and the program's arguments.
        cwd: Working directory.
        env: Environment. Defaults to that of this process.
        stdin: `subprocess.PIPE`, a file, its descriptor, or None for that of this process.
        stdout: The same for standard output.
        stderr: The same for standard error; may be `subprocess.STDOUT`.
        text: Pipes are text.
        start_new_session: The program leads a session of its own.
        fork_ranks: Processes that Lightning launches are forked in the same way. They are then no
            children of the first, and do not notice its death.
        server: Socket of the server. Defaults to that of this process.
    """
    ours: dict[str, IO] = {}
    theirs: list[int] = []
    opened: list[int] = []
    for number, (name, stream) in enumerate(
        {"stdin": stdin, "stdout": stdout, "stderr": stderr}.items()
    ):
        if stream == subprocess.PIPE:
            ends = os.pipe()
            own, other = reversed(ends) if name == "stdin" else ends
            mode = "w" if name == "stdin" else "r"
            ours[name] = (  # closed by `Process`
                os.fdopen(own, mode, buffering=1)
                if text
                else os.fdopen(own, f"{mode}b", buffering=0 if name == "stdin" else -1)
            )
            opened.append(other)
            theirs.append(other)
        elif stream == subprocess.STDOUT:
            theirs.append(theirs[1])
        elif stream is None:
            theirs.append(number)
        else:
            theirs.append(stream if isinstance(stream, int) else stream.fileno())
    request = {
        "args": [str(arg) for arg in args],
        "cwd": str(cwd or Path.cwd()),
        "env": dict(os.environ if env is None else env),
        "new_session": start_new_session,
        "fork_ranks": fork_ranks,
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(server or _server())
    socket.send_fds(connection, [json.dumps(request).encode()], theirs)
    connection.shutdown(socket.SHUT_WR)
    for descriptor in opened:
        os.close(descriptor)
    pid = int(connection.recv(NUMBER, socket.MSG_WAITALL))
    return Process(connection, pid, ours)


def run(args: list[str], timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGS`` to its end, with its output captured; see `subprocess.run`."""
    options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    with start(args, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(args, process.wait(), stdout, stderr)


@cache
def _server() -> str:
    """Start the server once; return the path of its socket."""
    folder = tempfile.mkdtemp(prefix="diffguard-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = f"{folder}/socket"
    ready, tells = os.pipe()
    server = subprocess.Popen(
        [sys.executable, __file__, address, str(tells), str(os.getpid())],
        pass_fds=[tells],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(tells)
    assert os.read(ready, 1), "the server of preloaded processes did not start"
    os.close(ready)
    atexit.register(server.kill)
    return address


def _serve(address: str, tells: int, tests: int) -> dict[str, Any]:
    """Fork on request; returns in the children, with the request.

    Args:
        address: Of the socket to listen at.
        tells: Descriptor to write to when all is imported.
        tests: Number of the process to end with.
    """
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    listening.settimeout(0.02)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy all that it shares with this process
    os.write(tells, b"1")
    os.close(tells)
    children: dict[int, socket.socket] = {}
    while os.getppid() == tests:
        with contextlib.suppress(TimeoutError):
            connection, _ = listening.accept()
            connection.settimeout(None)
            message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            while more := connection.recv(1 << 20):
                message += more
            child = os.fork()
            if child == 0:
                for other in (listening, connection, *children.values()):
                    other.close()
                return json.loads(message) | {"streams": streams, "server": address}
            for stream in streams:
                os.close(stream)
            connection.send(_number(child))
            children[child] = connection
        # without children, or with one whose starter is no more
        with contextlib.suppress(ChildProcessError, BrokenPipeError):
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended:
                children.pop(ended).send(_number(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _number(number: int) -> bytes:
    return f"{number:{NUMBER}}".encode()


def _become(request: dict[str, Any]) -> None:
    """Run the program, with the standard streams, arguments and environment asked for."""
    from lightning_utilities.core.rank_zero import rank_zero_only
    from pytorch_lightning.strategies.launchers import subprocess_script

    if request["new_session"]:
        os.setsid()
    for number, stream in enumerate(request["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        is_line_buffered = name == "stderr" or os.isatty(number)
        opened = open(  # noqa: SIM115  for the rest of the process
            number, "w" if number else "r", buffering=1 if is_line_buffered else -1, closefd=False
        )
        setattr(sys, name, opened)
        setattr(sys, f"__{name}__", opened)
    os.environ.clear()
    os.environ.update(request["env"])
    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", "0"))  # Lightning reads it at import
    if request["fork_ranks"]:
        launch = subprocess_script.subprocess = SimpleNamespace()
        launch.Popen = lambda command, **options: start(
            command[1:], **options, server=request["server"]
        )
    os.chdir(request["cwd"])
    random.seed()
    # as for a program of a terminal, also if the tests run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    first, *rest = request["args"]
    if first == "-m":
        sys.path.insert(0, request["cwd"])
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(first).parent))
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def _end(status: Any) -> None:
    """End the process as SystemExit does, but without clearing all modules one by one.

    That would copy all that the processes share.
    """
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = 120  # as Python does
    os._exit(status or 0)


if __name__ == "__main__":
    del sys.path[0]  # this folder
    asked = _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    atexit.register(gc.unfreeze)  # for a process that an exception ends as usual
    status = None
    try:
        _become(asked)
    except SystemExit as ended:
        status = ended.code
    # Out of its handler, as in Python itself: the exception's frames may hold a loader whose
    # worker processes end only when it is deleted.
    _end(status)
