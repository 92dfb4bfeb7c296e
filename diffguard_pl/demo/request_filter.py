"""What a browser may ask of the server: to upload a file, and to have an upload judged.

Gradio, mounted into a server, opens the file or address that a request names in place of an upload, for any component (6.31); and
it has routes for what this page has not.
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
LARGEST = 2**16
"""Bytes of a call; it names an upload, and does not hold it."""


class Door:
    """An ASGI application in front of another one.

    Args:
        app: behind it.
        uploads: folder of the files that a call may name.
    """

    def __init__(self, app: ASGIApp, uploads: Path):
        self.app, self.uploads = app, uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be asked, refuse the rest."""
        if (
            scope["type"] == "lifespan"
            or scope.get("method") in ("GET", "HEAD")
            or scope["path"] == UPLOAD
        ):
            return await self.app(scope, receive, send)
        if scope["type"] != "http" or scope["path"] not in CALLS:
            return await PlainTextResponse("this page has no such call", 404)(scope, receive, send)
        body = b""
        async for part in Request(scope, receive).stream():
            body += part
            if len(body) > LARGEST:
                return await PlainTextResponse("too long", 413)(scope, receive, send)
        try:
            ours = all(self._uploaded(path) for path in paths(json.loads(body)))
        except (ValueError, RecursionError):
            ours = False
        if not ours:
            return await PlainTextResponse("not an upload", 403)(scope, receive, send)
        read = False

        async def again() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    def _uploaded(self, path: Any) -> bool:
        return isinstance(path, str) and Path(path).resolve().is_relative_to(self.uploads)


def paths(content: Any) -> Iterator[Any]:
    """All that is called ``path`` in JSON."""
    if isinstance(content, dict):
        if "path" in content:
            yield content["path"]
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from paths(part)
