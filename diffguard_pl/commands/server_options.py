"""Options of the commands that serve, and their sockets, which open before anything is loaded."""

import argparse
import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import InputError
from ..web.limits import Limits


def add_server_options(parser: argparse.ArgumentParser, port: int | None, default: str) -> None:
    """Add where to listen, who may send requests, and the limits on an image.

    Args:
        parser: Parser of the command.
        port: Default of ``--port``.
        default: The same in words.
    """
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only)",
    )
    add("--port", type=int, default=port, help=f"port to listen on (default: {default})")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further host name of the server, such as that of a reverse proxy; may be repeated "
        "(default: the names and addresses of this machine)",
    )
    add(
        "--max-mb",
        type=float,
        default=Limits().megabytes,
        help="largest upload in MB (default: %(default)g)",
    )
    add(
        "--max-megapixels",
        type=float,
        default=Limits().megapixels,
        help="largest image in millions of pixels (default: %(default)g)",
    )


def limits_of(given: argparse.Namespace) -> Limits:
    """Return the limits that the options set.

    Raises:
        InputError: One is not positive.
    """
    for name, value in (("--max-mb", given.max_mb), ("--max-megapixels", given.max_megapixels)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} {value:g}: must be more than 0 and finite")
    return Limits(given.max_mb, given.max_megapixels)


def listen(host: str, port: int | None, ports: Sequence[int] = ()) -> socket.socket:
    """Open a socket on a port, or on the first free one of several.

    Args:
        host: Name or address of the interface to listen on.
        port: Port; 0 for any free one.
        ports: Candidates, if ``port`` is None.

    Raises:
        InputError: No such port is free, or the host is unknown.
    """
    if port is not None and not 0 <= port < 2**16:
        raise InputError(f"--port {port}: must be from 0 to {2**16 - 1}")
    for candidate in [port] if port is not None else ports:
        try:
            found = socket.getaddrinfo(
                host, candidate, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]
            return socket.create_server(address[:2], family=family)
        except OSError as error:
            failure = error
            if isinstance(error, socket.gaierror):
                break
    which = f"--port {port}" if port is not None else f"ports {ports[0]} to {ports[-1]}"
    reason = (failure.strerror or str(failure)).partition(" (while")[0]
    raise InputError(f"--host {host}, {which}: {reason}; choose another --port or --host")


def url(listener: socket.socket) -> str:
    """Return the URL of a server by its socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Have PyTorch compute in this thread alone, such as for loading what another thread will use.

    Threads of OpenMP that a thread has begun stay. If all together are more than the cores, GNU
    OpenMP lets each sleep between two operations, which takes twice as long for a small network.
    """
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
