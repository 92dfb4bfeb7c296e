"""A server in a thread, a detector that decides at once or when it is let, and a client."""

import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from PIL import Image

from diffguard_pl.commands.server_options import listen
from diffguard_pl.datamodules.reading import ImagePreparation
from diffguard_pl.deploy.decisions import Decisions
from diffguard_pl.serve.batching import Batching
from diffguard_pl.serve.server import Server
from diffguard_pl.web.hosts import AllowedHosts
from diffguard_pl.web.limits import DEFAULT_LIMITS, Limits

SOON = 20
"""Seconds, generous for a busy machine."""
DEFAULTS = Batching()
FAILING = 66
"""Grey level of images on which the detector fails."""


class FakeDetector:
    """Detector that accepts images brighter than the middle, and fails on one grey level.

    Attributes:
        batches: Sizes of the batches that it was given.
        gate: Closed, it has each batch wait.
    """

    preparation = ImagePreparation(image_size=8, resize=8)
    score, threshold, tpr = "brightness", 0.5, 0.95

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def decide(self, batches) -> Iterator[tuple[dict[str, Any], Decisions]]:
        for batch in batches:
            scores = batch["image"].double().mean(dim=(1, 2, 3))
            self.batches.append(len(scores))
            assert self.gate.wait(SOON)
            if ((scores * 255).round() == FAILING).any():
                raise RuntimeError("no memory\nat all")
            labels = torch.zeros(len(scores), dtype=torch.long)
            yield (
                batch,
                Decisions(
                    accepted=scores >= 0.5,
                    labels=labels,
                    label_names=["grey"] * len(scores),
                    scores=scores,
                    p_values=scores.clamp(0.01),
                    diffused=labels == 0,
                    threshold=0.5,
                    score_name=self.score,
                    all_scores={},
                ),
            )


class Answer(NamedTuple):
    """Response of the server."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.text)


def grey(level: int, side: int = 8) -> bytes:
    """Return a PNG file of one grey level in 0..255."""
    file = io.BytesIO()
    Image.new("L", (side, side), level).save(file, "PNG")
    return file.getvalue()


class Client:
    """Client that opens a connection for each request.

    Args:
        port: Port of the server on this machine.
    """

    def __init__(self, port: int):
        self.port = port
        self.threads = ThreadPoolExecutor(64)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, names)
            found = connection.getresponse()
            text = found.read().decode()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, text)
        finally:
            connection.close()

    def post(self, image: Any, name: str = "", **headers: str) -> Answer:
        path = "/v1/decisions" + (f"?name={name}" if name else "")
        return self.send("POST", path, image, **{"Content-Type": "image/png"} | headers)

    def post_later(self, image: Any, name: str = "") -> "Future[Answer]":
        return self.threads.submit(self.post, image, name)

    def metric(self, name: str) -> float:
        """Return the value of a metric by its name, with its label if it has one."""
        for line in self.send("GET", "/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise KeyError(name)

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        wait_until(lambda: self.metric(name) == value)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def serving(
    detector: Any, batching: Batching = DEFAULTS, limits: Limits = DEFAULT_LIMITS, **settings: Any
) -> Iterator[tuple[Client, Server, "Future[None]"]]:
    """Serve a detector in a thread.

    Yields:
        A client, the server, and the future of its end.
    """
    with listen("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as thread:
        port = listener.getsockname()[1]
        server = Server(
            detector, AllowedHosts("127.0.0.1", "127.0.0.1"), batching, limits, **settings
        )
        ended = thread.submit(server.run, listener)
        client = Client(port)
        try:
            yield client, server, ended
        finally:
            if isinstance(detector, FakeDetector):
                detector.gate.set()
            server.stop()
            client.threads.shutdown()
