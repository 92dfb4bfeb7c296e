"""Rules on the hosts under which the page may be requested, and on the pages that may call it.

A browser sends a page's requests to whatever address the page's host name has at that moment, so
any web page could otherwise reach a server that listens on this machine only (DNS rebinding).
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from ..errors import InputError

HOST_HEADER = re.compile(r"(?P<host>\[[^\]]*\]|[^\s\[\]:@/?#\\]+)(:\d*)?")
HOST_NAME = re.compile(r"[^\s\[\]:@/?#\\,*]+")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class AllowedHosts:
    """Host names and addresses that a request may name in its Host header.

    Args:
        given: Host that the server was told to listen on.
        address: IP address that it listens on.
        extra: Further host names, such as that of a reverse proxy. Pages under them may call the
            server, too.

    Raises:
        InputError: A further name is not a host name.
    """

    def __init__(self, given: str, address: str, extra: Iterable[str] = ()):
        self.extra = {_checked_name(name) for name in extra}
        self.names = {normalised(given), normalised(address), *self.extra}
        listens_on = ipaddress.ip_address(address.partition("%")[0])
        if listens_on.is_loopback or listens_on.is_unspecified:
            self.names |= set(LOOPBACK)
        if not listens_on.is_loopback:
            name = normalised(socket.gethostname())
            self.names |= {name, f"{name}.local"}
        # A page's host name can be made to point here, an address cannot.
        self.allows_addresses = listens_on.is_unspecified

    def allows(self, host_header: str) -> bool:
        """Return whether a Host header names this server."""
        matched = HOST_HEADER.fullmatch(host_header)
        if matched is None:
            return False
        host = normalised(matched["host"].strip("[]"))
        return host in self.names or (self.allows_addresses and _is_address(host))

    def allows_origin(self, origin: str, host_header: str) -> bool:
        """Return whether an Origin header names the page itself.

        Args:
            origin: The header, ``scheme://host:port``, or ``null``.
            host_header: Host header of the same request.
        """
        try:
            parts = urlsplit(origin)
            host = normalised(parts.hostname or "")
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):
            return False
        return parts.netloc.lower() == host_header.lower() or host in self.extra


def normalised(host: str) -> str:
    """Return the one spelling of a host name or IP address."""
    host = host.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _checked_name(name: str) -> str:
    name = name.removeprefix("[").removesuffix("]")
    if not _is_address(name) and not HOST_NAME.fullmatch(name):
        raise InputError(
            f"--allow-host {name[:200]!r}: must be a host name, without scheme, port and wildcards"
        )
    return normalised(name)
