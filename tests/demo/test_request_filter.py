"""Requests that the demo refuses: a page sends none of them."""

import asyncio
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pytest

pytest.importorskip("starlette", reason="gradio, of the extra demo, is not installed")

from helpers.images import saved

from diffguard_pl.datamodules.digits import digits
from diffguard_pl.demo import request_filter
from diffguard_pl.demo.request_filter import (
    FILE,
    UPLOAD,
    RequestFilter,
    is_below,
    is_flag,
    is_upload_or_none,
)
from diffguard_pl.web import requests
from diffguard_pl.web.hosts import AllowedHosts
from diffguard_pl.web.limits import Limits

JOIN, RUN = "/gradio_api/queue/join", "/gradio_api/run/predict"
FORM = {"Content-Type": "multipart/form-data; boundary=XX"}


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class Client:
    """What sends requests to the demo."""

    def __init__(self, url: str):
        self.address = urlsplit(url).netloc
        config = json.loads(self.send("GET", "/config").body)
        self.functions = {len(call["inputs"]): call["id"] for call in config["dependencies"]}

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})

    def upload(self, *parts: bytes, **headers: str) -> Answer:
        return self.send("POST", UPLOAD, form(*parts), **FORM, **headers)

    def call(self, path: str = JOIN, **fields: Any) -> int:
        call = {"data": [None, False], "fn_index": self.functions[2], "session_hash": "s"}
        body = json.dumps(call | fields).encode()
        return self.send("POST", path, body, **{"Content-Type": "application/json"}).status


def part(content: bytes, name: bytes = b"a.png", field: bytes = b"files") -> bytes:
    disposition = b'form-data; name="' + field + b'"; filename="' + name + b'"'
    return b"Content-Disposition: " + disposition + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(b"--XX\r\n" + part for part in parts) + b"--XX--\r\n"


@pytest.fixture(scope="module")
def client(demo) -> Client:
    return Client(demo)


@pytest.fixture(scope="module")
def digit(tmp_path_factory) -> bytes:
    (path,) = saved(digits("test").images[:1], tmp_path_factory.mktemp("image"), "digit")
    return Path(path).read_bytes()


def test_an_upload_is_one_file_within_the_limit(client, digit):
    assert client.upload(part(digit)).status == 200
    assert client.upload(part(b"0" * 10 * 2**20)).status == 200
    assert client.upload(part(b"0" * (10 * 2**20 + 1))).status == 413
    assert client.upload(part(b"0" * 11 * 2**20)).status == 413
    for parts in ([part(digit)] * 2, [part(digit)] * 1500, [], [part(digit, field=b"other")]):
        assert client.upload(*parts).status == 400
    without_name = b'Content-Disposition: form-data; name="files"\r\n\r\nx\r\n'
    for body in (b"", b"--XX", digit, form(part(digit))[:-6], form(without_name)):
        assert client.send("POST", UPLOAD, body, **FORM).status == 400
    assert client.send("POST", UPLOAD, form(part(digit))).status == 400


@pytest.mark.parametrize(
    "name", [b"..", b"", b"../../../x.png", b"\xff\0", b"a" * 300, b"page.html", b"image.svg"]
)
def test_the_name_of_an_upload_places_it_nowhere_else(client, digit, name):
    answer = client.upload(part(digit, name))
    assert answer.status in (200, 400)
    if answer.status == 200:
        (path,) = json.loads(answer.body)
        assert "diffguard-demo-" in path
        answer = client.send("GET", FILE + quote(path))
        assert (answer.status, answer.body) == (200, digit)
        if name.endswith((b"html", b"svg")):
            assert answer.headers["content-disposition"].startswith("attachment"), "is not shown"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_the_page_is_not_served_under_another_name(client, method):
    path = {"GET": "/config", "POST": UPLOAD, "OPTIONS": JOIN}[method]
    answer = client.send(method, path, Host="rebound.example")
    assert answer.status == 403
    assert b"--allow-host" in answer.body
    assert client.send("GET", "/config", Host="localhost:1").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_another_site_s_page_does_not_call(client, digit, headers):
    answer = client.upload(part(digit), **headers)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers
    assert client.send("POST", JOIN, b"{}", **headers).status == 403


def test_the_page_itself_calls(client, digit):
    assert client.upload(part(digit), Origin=f"http://{client.address}").status == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.send("GET", "/", **link).status == 200


@pytest.mark.parametrize("path", [JOIN, RUN])
def test_a_call_is_of_a_known_function_with_valid_inputs(client, digit, path, tmp_path):
    (upload,) = json.loads(client.upload(part(digit)).body)
    if path == JOIN:
        assert client.call() == 200
        assert client.call(data=[{"path": upload, "orig_name": "a.png"}, True]) == 200
    for number in (999, -1, None, True, "2", [2], 1e400, 2**70):
        assert client.call(path, fn_index=number) == 404
    for data in (None, [], [1, 2], [None], [{"path": upload, "orig_name": 3}, False], ["x", False]):
        assert client.call(path, data=data) == 422
    for fields in ({"session_hash": None}, {"session_hash": "../x"}, {"trigger_id": "x"}):
        assert client.call(path, **fields) == 422
    assert client.call(RUN, fn_index=client.functions[1], data=[0]) == 200
    assert client.call(path, fn_index=client.functions[1], data=[99]) == 422
    json_type = {"Content-Type": "application/json"}
    for body in (b"", b"null", b"[]", b"{", b"[" * 60_000, b"\xff"):
        assert client.send("POST", path, body, **json_type).status == 422
    assert client.send("POST", path, b" " * (2**16 + 1), **json_type).status == 413


def test_a_request_names_no_other_file_or_address(client, digit, tmp_path):
    """The process ends should it contact another server."""
    (tmp_path / "private.png").write_bytes(digit)
    (upload,) = json.loads(client.upload(part(digit)).body)
    other = [str(tmp_path / "private.png"), "https://example.org/image.png", "../private.png"]
    other += [str(Path(upload).parent), f"{upload}\0", f"{upload}/../../../../etc/passwd"]
    for path in other:
        assert client.send("GET", FILE + quote(path)).status == 403
        for data in ([{"path": path}, False], [None, {"path": path}]):
            assert client.call(data=data) == 403
    for path in (None, 3, [upload]):
        assert client.call(data=[{"path": path, "url": other[1]}, False]) == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/gradio_api/cancel"),
        ("GET", "/gradio_api/proxy=http://example.org"),
        ("GET", "/gradio_api/info"),
        ("GET", "/docs"),
        ("GET", "//"),
        ("PUT", JOIN),
        ("DELETE", "/"),
    ],
)
def test_routes_that_the_page_does_not_use_are_unknown(client, method, path):
    assert client.send(method, path).status == 404


def test_an_ended_session_and_an_invalid_range_print_nothing(client, digit):
    """The process's standard error is empty in the end."""
    assert client.send("GET", "/gradio_api/queue/data?session_hash=ended").status == 200
    (upload,) = json.loads(client.upload(part(digit)).body)
    for ranges in ("bytes=0-1-3", "bytes=9-1", "bytes=x"):
        assert client.send("GET", FILE + quote(upload), Range=ranges).body == digit


# In process, without Gradio


class Behind:
    """Application behind the filter that records what it gets."""

    def __init__(self, failure: Exception | None = None):
        self.bodies: list[bytes] = []
        self.failure = failure

    async def __call__(self, scope, receive, send) -> None:
        self.bodies.append((await receive())["body"])
        if self.failure:
            raise self.failure
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def answered(app: RequestFilter, method: str, path: str, *chunks: bytes) -> int:
    """Return the status of a request whose body comes in chunks, or does not end if they do."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", FORM["Content-Type"].encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    if chunks and chunks[-1] == b"":
        messages[-1]["more_body"] = False
    with ThreadPoolExecutor(1) as thread:  # the main thread may have playwright's event loop
        thread.submit(lambda: asyncio.run(app(scope, receive, send))).result()
    return sent[0]["status"]


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def app(behind, tmp_path) -> RequestFilter:
    hosts = AllowedHosts("localhost", "127.0.0.1")
    functions = {0: [is_upload_or_none, is_flag], 1: [is_below(3)]}
    return RequestFilter(behind, tmp_path, hosts, Limits(1, 1), functions)


def test_of_a_call_only_known_fields_are_passed_on(app, behind, tmp_path):
    (tmp_path / "a.png").touch()
    upload = {"path": str(tmp_path / "a.png"), "url": "http://example.org", "is_stream": True}
    call = {"fn_index": 0, "session_hash": "s", "data": [upload, True], "event_data": 1}
    assert answered(app, "POST", JOIN, json.dumps(call).encode(), b"") == 200
    (body,) = behind.bodies
    passed = json.loads(body)
    assert passed.keys() == {"fn_index", "session_hash", "trigger_id", "data"}
    assert passed["data"][0].keys() == {"path", "orig_name", "meta"}


def test_the_number_of_stored_and_arriving_uploads_is_limited(app, tmp_path, monkeypatch):
    monkeypatch.setattr(request_filter, "MAX_STORED", 2)
    chunks = [form(part(b"x")), b""]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1").touch()
    assert answered(app, "POST", UPLOAD, *chunks) == 200
    (tmp_path / "2").touch()
    assert answered(app, "POST", UPLOAD, *chunks) == 503
    monkeypatch.undo()
    app.arriving = request_filter.MAX_AT_ONCE
    assert answered(app, "POST", UPLOAD, *chunks) == 503
    app.arriving -= 1
    assert answered(app, "POST", UPLOAD, *chunks) == 200
    assert app.arriving == request_filter.MAX_AT_ONCE - 1


def test_a_body_that_does_not_end_is_given_up(app, monkeypatch):
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.05)
    assert answered(app, "POST", UPLOAD, form(part(b"x"))) == 408
    assert app.arriving == 0


def test_a_failure_is_one_line(app, behind, capsys):
    behind.failure = RuntimeError("a\nb" * 1000)
    assert answered(app, "GET", "/config", b"") == 500
    assert capsys.readouterr().err.count("\n") == 1
