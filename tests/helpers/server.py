"""An HTTP server that breaks connections off, changes files, and counts requests."""

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from diffguard_pl.checkpoints import download
from diffguard_pl.checkpoints.registry import PUBLISHED, PublishedCheckpoint
from helpers.golden import GDM_ARCHITECTURE
from helpers.originals import GDM_FILE

BODY = torch.arange(300_000, dtype=torch.int32).numpy().tobytes()
"""A file of 1.2 MB, no two parts of it alike."""


@dataclass
class Page:
    """The server's answer for one path.

    Attributes:
        body: Content of the file.
        ranges: Whether the server supports range requests.
        drops: Number of the next connections that end early.
        after: Number of bytes after which they end.
        claims: Content-Length, if not the length of the body.
        etag: Version of the file.
        kind: Content-Type.
        status: HTTP status.
        seconds: Delay of the answer.
        headers: Further headers.
    """

    body: bytes = b""
    ranges: bool = True
    drops: int = 0
    after: int = 0
    claims: int | None = None
    etag: str = '"1"'
    kind: str = "application/octet-stream"
    status: int = 200
    seconds: float = 0
    headers: dict[str, str] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """HTTP server that records paths and ranges of its requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def put(self, name: str, body: bytes | Path = BODY, **settings) -> str:
        self.pages[f"/{name}"] = Page(
            body if isinstance(body, bytes) else body.read_bytes(), **settings
        )
        return f"{self.url}/{name}"

    def handle_error(self, *_: object) -> None:
        """Ignore clients that hang up, which tests do."""

    @property
    def ranges(self) -> list[str | None]:
        return [range_ for _, range_ in self.asked]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        path, range_ = self.path.partition("?")[0], self.headers.get("Range")
        self.server.asked.append((path, range_))
        page = self.server.pages.get(path, Page(status=404))
        time.sleep(page.seconds)
        start = int(re.findall(r"\d+", range_)[0]) if range_ and page.ranges else 0
        if start and start >= len(page.body):
            self.send_response(416)
            self.end_headers()
            return
        self.send_response(206 if start else page.status)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}"
            )
        self.send_header("Content-Length", str((page.claims or len(page.body)) - start))
        self.send_header("Content-Type", page.kind)
        self.send_header("ETag", page.etag)
        for name, value in page.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = page.body[start:]
        if page.drops:
            page.drops -= 1
            body = body[: page.after]
        self.wfile.write(body)
        self.server.sent += len(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server on localhost, for one test."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def checkpoint_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of checkpoints, and downloads that hardly pause."""
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def published(server, monkeypatch) -> PublishedCheckpoint:
    """Small weights of the registry, on the server."""
    digest = hashlib.sha256(GDM_FILE.read_bytes()).hexdigest()
    settings = {
        "size": GDM_FILE.stat().st_size,
        "sha256": digest,
        "architecture": replace(GDM_ARCHITECTURE, noise_schedule="cosine"),
    }
    entry = PublishedCheckpoint(
        "tiny", "a small one", "tiny_uncond.pt", server.put("gdm.pt", GDM_FILE), **settings
    )
    monkeypatch.setitem(PUBLISHED, "tiny", entry)
    return entry
