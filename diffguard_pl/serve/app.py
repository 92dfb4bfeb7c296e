"""The server's routes: decisions on images, health and metrics."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from hashlib import sha256
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..deploy.decision_log import as_json, printable
from ..deploy.detector import Detector
from ..web.hosts import AllowedHosts
from ..web.limits import Limits
from ..web.requests import Refused, check_sender, read_body
from .batching import Batcher, Item, Record, Stopped
from .metrics import CONTENT_TYPE, Metrics
from .uploads import prepared

DECISIONS = "/v1/decisions"
RETRY_AFTER = {"Retry-After": "1"}
MAX_NAME = 200
"""Largest number of characters of an image's name."""
REMEDY = "send the bytes of one image, with Content-Type: image/png or the like"
NUMBER_OR_NULL = {"type": ["number", "null"]}
RECORD = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "name, or sha256: and the hash of the bytes"},
        "decision": {"enum": ["accept", "reject"]},
        "label": {"type": "integer", "description": "class that the classifier predicts"},
        "class": {"type": "string"},
        "score": NUMBER_OR_NULL,
        "p_value": NUMBER_OR_NULL,
        "diffused": {"type": "boolean"},
        "note": {"type": "string", "description": "why the score is null"},
    },
}
ERROR = {"type": "object", "properties": {"error": {"type": "string"}}}
"""JSON Schemas of the answers, for the server's OpenAPI description."""


class Service:
    """What the routes share. Except for the detector's thread, all of it is the event loop's.

    Args:
        detector: Calibrated detector.
        batcher: Thread that decides.
        reader: Executor that decodes images. One thread will do: decoding takes milliseconds, and
            Pillow's warnings are settings of the whole process.
        metrics: Metrics to count in.
        limits: Limits on an image.
        max_queue: Largest number of images that have been accepted and not been answered.

    Attributes:
        in_progress: Number of these images.
        is_stopping: Whether the server has been asked to end.
    """

    def __init__(
        self,
        detector: Detector,
        batcher: Batcher,
        reader: Executor,
        metrics: Metrics,
        limits: Limits,
        max_queue: int,
    ):
        self.detector, self.batcher, self.reader = detector, batcher, reader
        self.metrics, self.limits, self.max_queue = metrics, limits, max_queue
        self.max_bytes = int(limits.megabytes * 2**20)
        self.in_progress = 0
        self.is_stopping = False

    async def decide(self, request: Request) -> Response:
        """Decide on the image in the body of a request."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"unsupported Content-Type; {REMEDY}")
        name = request.query_params.get("name", "")
        if len(name) > MAX_NAME:
            raise Refused(
                HTTPStatus.BAD_REQUEST, f"name: has more than {MAX_NAME} characters; shorten it"
            )
        # The place is taken before the body is read: it bounds what is held in memory.
        if self.in_progress >= self.max_queue:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "queue full; try again", RETRY_AFTER)
        self.in_progress += 1
        try:
            status, line = await self._decided(await self._item(request, printable(name)))
        except Stopped as error:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending", RETRY_AFTER
            ) from error
        finally:
            self.in_progress -= 1
        self.metrics.images.add(line.get("decision", "error"))
        return _json(line, status)

    async def _item(self, request: Request, name: str) -> Item:
        """Return the prepared image of a request; its bytes are not kept."""
        content = await read_body(request.scope, request.receive, self.max_bytes)

        def prepare() -> Item:
            path = name or f"sha256:{sha256(content).hexdigest()}"
            return prepared(self.detector, content, path, self.limits.megapixels)

        return await asyncio.get_running_loop().run_in_executor(self.reader, prepare)

    async def _decided(self, item: Item) -> tuple[int, Record]:
        """Return the status and the record of an image.

        Raises:
            Stopped: The detector takes no images any more.
        """
        if "error" in item:
            line = {"path": item["path"], "error": item["error"]}
            self.batcher.record(line)
            return HTTPStatus.UNPROCESSABLE_ENTITY, line
        line = await asyncio.wrap_future(self.batcher.submit(item))
        failed = "error" in line
        return HTTPStatus.INTERNAL_SERVER_ERROR if failed else HTTPStatus.OK, line

    async def health(self) -> Response:
        """Say whether images are decided on."""
        state = "ready"
        if self.is_stopping:
            state = "stopping"
        elif not self.batcher.is_alive or self.batcher.is_broken:
            state = "failed"
        status = HTTPStatus.OK if state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
        detector = self.detector
        facts = {"score": detector.score, "threshold": detector.threshold, "tpr": detector.tpr}
        return _json({"status": state} | facts, status)

    async def show_metrics(self) -> Response:
        """Return the metrics in Prometheus' text format."""
        text = self.metrics.text(self.batcher.queue_length, self.in_progress)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})


class Guarded:
    """ASGI application that refuses requests of other sites' pages, and counts the others.

    Args:
        app: Application behind it.
        service: What the routes share.
        hosts: Hosts under which the server may be requested.
    """

    def __init__(self, app: ASGIApp, service: Service, hosts: AllowedHosts):
        self.app, self.service, self.hosts = app, service, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        began, metrics = time.monotonic(), self.service.metrics

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                if scope["path"] == DECISIONS:
                    metrics.requests.add(str(int(message["status"])))
                    if message["status"] == HTTPStatus.OK:
                        metrics.seconds.add(time.monotonic() - began)
                if self.service.is_stopping:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        if scope["type"] != "http":
            return  # no lifespan, no WebSockets
        try:
            check_sender(Headers(scope=scope), scope["method"], self.hosts)
        except Refused as refused:
            await _refusal(refused)(scope, receive, counting_send)
        else:
            await self.app(scope, receive, counting_send)


def application(service: Service, hosts: AllowedHosts) -> ASGIApp:
    """Return the application: the routes, behind the check of who asks.

    Args:
        service: What the routes share.
        hosts: Hosts under which the server may be requested.
    """
    # Its pages of documentation would load scripts from other servers.
    app = FastAPI(title="diffguard-pl serve", docs_url=None, redoc_url=None)

    async def refuse(request: Request, refused: Exception) -> Response:
        assert isinstance(refused, Refused)
        return _refusal(refused)

    async def refuse_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _json({"error": str(error.detail).lower()}, error.status_code, error.headers)

    app.add_exception_handler(Refused, refuse)
    app.add_exception_handler(HTTPException, refuse_route)
    content = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
    name = {"name": "name", "in": "query", "description": "name of the image in its record"}
    app.add_api_route(
        DECISIONS,
        service.decide,
        methods=["POST"],
        response_model=None,
        responses=_responses(),
        openapi_extra={
            "requestBody": {"required": True, "content": content},
            "parameters": [name | {"schema": {"type": "string", "maxLength": MAX_NAME}}],
        },
    )
    app.add_api_route("/health", service.health, response_model=None)
    app.add_api_route("/metrics", service.show_metrics, response_model=None)
    return Guarded(app, service, hosts)


def _responses() -> dict[int | str, dict[str, Any]]:
    """Return the answers to a request for a decision, for the OpenAPI description."""
    texts = {
        200: "the decision",
        403: "another host or another site's page",
        408: "the body took too long to arrive",
        413: "the body is too large",
        415: "not sent as an image",
        422: "the image cannot be judged",
        500: "the detector failed on the image",
        503: "the queue is full, or the server is ending",
    }
    return {
        status: {
            "description": text,
            "content": {"application/json": {"schema": RECORD if status == 200 else ERROR}},
        }
        for status, text in texts.items()
    }


def _refusal(refused: Refused) -> Response:
    return _json({"error": refused.reason}, refused.status, refused.headers)


def _json(line: Record, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response of one line, so that saved answers are JSON Lines."""
    text = as_json(line) + "\n"
    return Response(text, status, headers, media_type="application/json")
