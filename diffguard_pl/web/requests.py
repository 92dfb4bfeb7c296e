"""Checks of a request before anything acts on it: where it comes from, and the size of its body."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from .hosts import AllowedHosts

BODY_SECONDS = 120
"""Seconds in which a request must have arrived."""


class Refused(Exception):
    """A request that is not acted on.

    Args:
        status: Status of the response.
        reason: Text of the response.
        headers: Further headers of the response. Defaults to none.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


def check_sender(headers: Headers, method: str, hosts: AllowedHosts) -> None:
    """Check that a request names this server, and comes from no other site's page.

    Raises:
        Refused: It does not.
    """
    named = headers.getlist("host")
    if len(named) != 1 or not hosts.allows(named[0]):
        raise Refused(
            HTTPStatus.FORBIDDEN, "unknown host; to allow its name, add --allow-host NAME"
        )
    origins = headers.getlist("origin")
    is_foreign = any(not hosts.allows_origin(origin, named[0]) for origin in origins)
    # a link on another site may open a page, a form there may not post to it
    if method == "POST" and not origins:
        is_foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if is_foreign:
        raise Refused(HTTPStatus.FORBIDDEN, "request of another site's page")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return a request's body.

    Args:
        scope: Scope of the request.
        receive: Source of its messages.
        limit: Largest size, in bytes. No more than that is kept in memory.

    Raises:
        Refused: It is too large or too slow, or the client has left.
    """

    async def read() -> bytes | None:
        body = bytearray()
        is_larger = False
        async for chunk in Request(scope, receive).stream():
            # Read on: a client that is still sending would not see the response.
            is_larger = is_larger or len(body) + len(chunk) > limit
            if not is_larger:
                body += chunk
        return None if is_larger else bytes(body)

    try:
        whole = await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "request too slow") from error
    except ClientDisconnect as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "disconnected") from error
    if whole is None:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"request too large: more than {limit:,} bytes"
        )
    return whole
