"""Filter for the requests that the page sends: get its parts, upload a file, have it judged.

Gradio (6.31), mounted into a server, answers many more. It opens any file or address that a request
names in place of an upload, fetches addresses for its clients, takes 1,000 files an upload, and
prints a traceback for a call of a function that the page does not have. Here everything is refused
that the page does not send, and of a call only the understood fields are passed on.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..web.hosts import AllowedHosts
from ..web.limits import Limits
from ..web.requests import Refused, check_sender, read_body

API = "/gradio_api"
UPLOAD = f"{API}/upload"
CALLS = (f"{API}/queue/join", f"{API}/run/predict")
FILE = f"{API}/file="
PARTS = {
    "/",
    "/config",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
    "/theme.css",
    f"{API}/app_id",
    f"{API}/queue/data",
    f"{API}/startup-events",
    f"{API}/theme.css",
    f"{API}/upload_progress",
}
PARTS_BELOW = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
"""What a browser gets of the page, besides uploads and examples."""

MAX_CALL_BYTES = 2**16
"""Largest body of a call: it names an upload and does not contain it."""
MAX_FORM_BYTES = 2**14
"""Largest size of an upload beyond that of its file: boundaries and headers."""
MAX_AT_ONCE = 20
"""Number of uploads that may arrive at the same time; each is held in memory until it is whole."""
MAX_STORED = 100
"""Number of files in the folder of uploads; they are deleted after minutes."""
TOKEN = re.compile(r"[\w-]{1,64}", re.ASCII)

Accepts = Callable[[Any], bool]
"""Whether a value is a valid input of a function."""


class RequestFilter:
    """ASGI application that passes allowed requests on to another one and refuses the rest.

    Args:
        app: Application behind the filter.
        uploads: Folder of the files that a request may name.
        hosts: Hosts under which the page may be requested.
        limits: Limits on uploads.
        functions: For each function that may be called, which inputs it takes.
    """

    def __init__(
        self,
        app: ASGIApp,
        uploads: Path,
        hosts: AllowedHosts,
        limits: Limits,
        functions: Mapping[int, Sequence[Accepts]],
    ):
        self.app, self.hosts, self.functions = app, hosts, functions
        self.uploads = uploads.resolve()
        self.max_file_bytes = int(limits.megabytes * 2**20)
        self.arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            receive = await self._checked(scope, receive)
        except Refused as refused:
            await PlainTextResponse(refused.reason, refused.status)(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """Return the source of an allowed request's body; raise `Refused` for any other request."""
        if scope["type"] != "http":
            raise Refused(HTTPStatus.NOT_FOUND, "unknown route")
        check_sender(Headers(scope=scope), scope["method"], self.hosts)
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            self._check_part(path)
            # Gradio fails on invalid ranges, and images need none
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
            return receive
        if method == "POST" and path == UPLOAD:
            return _replay(await self._upload(scope, receive), receive)
        if method == "POST" and path in CALLS:
            body = await read_body(scope, receive, MAX_CALL_BYTES)
            return _replay(self._understood(body), receive)
        raise Refused(HTTPStatus.NOT_FOUND, "unknown route")

    def _check_part(self, path: str) -> None:
        """Check that a path is a part of the page, an upload or an example."""
        if path.startswith(FILE):
            if not self.is_upload(path.removeprefix(FILE)):
                raise Refused(HTTPStatus.FORBIDDEN, "path is not an upload")
        elif path not in PARTS and not path.startswith(PARTS_BELOW):
            raise Refused(HTTPStatus.NOT_FOUND, "unknown route")

    async def _upload(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body of an upload of one file within the limits."""
        if self.arriving >= MAX_AT_ONCE or self._stored() >= MAX_STORED:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "too many uploads; try again in a few minutes"
            )
        self.arriving += 1
        try:
            body = await read_body(scope, receive, self.max_file_bytes + MAX_FORM_BYTES)
        finally:
            self.arriving -= 1
        request = Request(scope, _replay(body, receive))
        try:
            async with request.form(max_files=1, max_fields=0) as form:
                files = [(name, value) for name, value in form.multi_items()]
        except Exception as error:  # a body may make the parser raise anything
            raise Refused(HTTPStatus.BAD_REQUEST, "must be a form with one file") from error
        if len(files) != 1 or files[0][0] != "files" or not isinstance(files[0][1], UploadFile):
            raise Refused(HTTPStatus.BAD_REQUEST, "must be a form with one file, 'files'")
        if (files[0][1].size or 0) > self.max_file_bytes:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "file too large")
        return body

    def _stored(self) -> int:
        return sum(path.is_file() for path in self.uploads.rglob("*"))

    def _understood(self, body: bytes) -> bytes:
        """Return the fields of a call that Gradio needs, if they are valid."""
        try:
            call = json.loads(body)
            function, session = call["fn_index"], call["session_hash"]
            data, trigger = call["data"], call.get("trigger_id")
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid call") from error
        # True and 1.0 are 1 as keys
        if type(function) is not int or function not in self.functions:
            raise Refused(HTTPStatus.NOT_FOUND, "unknown function")
        if not isinstance(session, str) or not TOKEN.fullmatch(session):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid session_hash")
        if trigger is not None and type(trigger) is not int:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid trigger_id")
        self._check_inputs(data, self.functions[function])
        understood = {"fn_index": function, "session_hash": session, "trigger_id": trigger}
        return json.dumps(understood | {"data": [_bare(value) for value in data]}).encode()

    def _check_inputs(self, data: Any, inputs: Sequence[Accepts]) -> None:
        if not isinstance(data, list) or len(data) != len(inputs):
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid number of inputs")
        for value, accepts in zip(data, inputs, strict=True):
            if isinstance(value, dict) and not self.is_upload(value.get("path")):
                raise Refused(HTTPStatus.FORBIDDEN, "path is not an upload")
            if not accepts(value):
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid input")

    def is_upload(self, path: Any) -> bool:
        """Return whether a path is a file in the folder of uploads."""
        try:
            resolved = Path(path).resolve()
            return resolved.is_relative_to(self.uploads) and resolved.is_file()
        except (OSError, RuntimeError, TypeError, ValueError):
            return False

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the application answer; report its failure in one line."""
        is_started = is_complete = False

        async def watched_send(message: Message) -> None:
            nonlocal is_started, is_complete
            is_started = True
            is_complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except Exception as error:
            # within a stream an HTTPException, which Starlette wraps, is about an ended session
            if not isinstance(error.__cause__ or error, HTTPException):
                reason = " ".join(f"{type(error).__name__}: {error}"[:200].split())
                print(f"{scope['method']} {scope['path'][:100]!r}: {reason}", file=sys.stderr)
            if not is_started:
                response = PlainTextResponse("failed", HTTPStatus.INTERNAL_SERVER_ERROR)
                await response(scope, receive, send)
            elif not is_complete:
                await send({"type": "http.response.body", "body": b"", "more_body": False})


def is_upload_or_none(value: Any) -> bool:
    """Accept what the page sends of an image: none, or an upload, whose path the filter checks."""
    if value is None:
        return True
    return isinstance(value, dict) and isinstance(value.get("orig_name"), str | None)


def is_flag(value: Any) -> bool:
    """Accept the state of a checkbox."""
    return isinstance(value, bool)


def is_below(count: int) -> Accepts:
    """Return a check that accepts an index of so many examples."""
    return lambda value: type(value) is int and 0 <= value < count


def _bare(value: Any) -> Any:
    """Return of an upload only what the page needs."""
    if not isinstance(value, dict):
        return value
    kept = {"path": value["path"], "orig_name": value.get("orig_name")}
    return kept | {"meta": {"_type": "gradio.FileData"}}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a source whose first message is a body that has been read already."""
    is_replayed = False

    async def replay() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
