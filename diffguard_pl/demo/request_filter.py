"""Filter for the requests that a browser may send: upload a file, and have an upload judged.

Gradio (6.31), mounted into a server, opens any file or address that a request names in place of an
upload, for every component. It also has routes that this page does not use.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

API = "/gradio_api"
UPLOAD = f"{API}/upload"
CALLS = (f"{API}/queue/join", f"{API}/run/predict", f"{API}/cancel", f"{API}/reset")
MAX_CALL_BYTES = 2**16
"""Largest body of a call: it names an upload and does not contain it."""


class RequestFilter:
    """ASGI application that passes allowed requests on to another one and refuses the rest.

    Args:
        app: Application behind the filter.
        uploads: Folder of the files that a call may name.
    """

    def __init__(self, app: ASGIApp, uploads: Path):
        self.app, self.uploads = app, uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        is_read = scope.get("method") in ("GET", "HEAD")
        if scope["type"] == "lifespan" or is_read or scope["path"] == UPLOAD:
            await self.app(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in CALLS:
            await self._filter_call(scope, receive, send)
        else:
            await PlainTextResponse("unknown route", 404)(scope, receive, send)

    async def _filter_call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on if all paths in its body are uploads."""
        body = b""
        async for chunk in Request(scope, receive).stream():
            body += chunk
            if len(body) > MAX_CALL_BYTES:
                await PlainTextResponse("request too large", 413)(scope, receive, send)
                return
        try:
            is_allowed = all(self._is_upload(path) for path in paths_in(json.loads(body)))
        except (ValueError, RecursionError):
            is_allowed = False
        if not is_allowed:
            await PlainTextResponse("path is not an upload", 403)(scope, receive, send)
            return

        is_replayed = False

        async def replay() -> Message:
            """Return the body, which has been read already, as the application's first message."""
            nonlocal is_replayed
            if is_replayed:
                return await receive()
            is_replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def _is_upload(self, path: Any) -> bool:
        return isinstance(path, str) and Path(path).resolve().is_relative_to(self.uploads)


def paths_in(content: Any) -> Iterator[Any]:
    """Yield every value with the key ``path`` in nested JSON."""
    if isinstance(content, dict):
        if "path" in content:
            yield content["path"]
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from paths_in(item)
