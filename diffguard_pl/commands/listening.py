"""Sockets of the commands that serve, opened before anything is loaded."""

import socket
from collections.abc import Sequence

from ..errors import InputError


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
