"""The server: decisions over HTTP, limits, refused requests, metrics, and its end."""

import http.client
import io
import socket
import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="FastAPI, of the extra serve, is not installed")

from helpers.adapters import FAST
from helpers.images import saved
from helpers.served import FAILING, FakeDetector, grey, serving, wait_until

import diffguard_pl
from diffguard_pl import Detector
from diffguard_pl.datamodules.digits import digits, held_out, photos
from diffguard_pl.errors import InputError
from diffguard_pl.serve import server as server_module
from diffguard_pl.serve.batching import MAX_FAILURES, Batching
from diffguard_pl.web import requests
from diffguard_pl.web.limits import Limits

IN_PROGRESS, WAITING = "diffguard_images_in_progress", "diffguard_queue_images"


@pytest.fixture
def detector() -> FakeDetector:
    return FakeDetector()


@pytest.fixture
def client(detector):
    with serving(detector, Batching(max_wait_ms=0), Limits(0.1, 0.01)) as (client, *_):
        yield client


def code(status: int) -> str:
    return f'diffguard_requests_total{{code="{status}"}}'


def file_of(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF")
    return file.getvalue()


# Decisions


def test_the_detector_alone_computes_in_several_threads(detector, monkeypatch):
    found: list[int] = []

    def decide(*arguments):
        found.append(torch.get_num_threads())
        return original(*arguments)

    original = server_module.decide
    monkeypatch.setattr(server_module, "decide", decide)
    count = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with serving(detector, Batching(max_wait_ms=0)) as (client, server, _):
            assert client.post(grey(100)).status == 200
            found.append(server._reader.submit(torch.get_num_threads).result())
    finally:
        torch.set_num_threads(count)
    assert found == [3, 1]


def test_decisions_are_those_of_predict_in_one_batch_across_requests(tmp_path):
    detector = Detector(diffguard_pl.load("digits_ldm", **FAST), tpr=0.9)
    detector.calibrate([digits("val").images[:20]])
    images = [digits("test").images[:2], held_out().images[:1], photos().images[:1]]
    paths = [path for i, part in enumerate(images) for path in saved(part, tmp_path, f"{i}-")]
    expected = detector.predict(paths)
    batching = Batching(max_batch=len(paths), max_wait_ms=60_000)
    with serving(detector, batching) as (client, server, _):
        contents = [open(path, "rb").read() for path in paths]  # noqa: SIM115
        answers = [client.post_later(content, f"{i}.png") for i, content in enumerate(contents)]
        for i, (answer, decision) in enumerate(zip(answers, expected, strict=True)):
            line = answer.result().json
            assert line.pop("score") == pytest.approx(decision.score, abs=1e-5)
            assert line == {
                "path": f"{i}.png",
                "decision": "accept" if decision.accepted else "reject",
                "label": decision.label,
                "class": decision.label_name,
                "p_value": decision.p_value,
                "diffused": True,
            }
        assert server.metrics.batches.count == 1
        assert client.metric("diffguard_batch_images_sum") == len(paths)
    assert {*expected.accepted.tolist()} == {True, False}


def test_an_image_without_a_name_is_named_by_its_content(client):
    first, second, other = client.post(grey(200)), client.post(grey(200)), client.post(grey(1))
    assert first.text == second.text
    assert first.json["path"].startswith("sha256:")
    assert first.json["path"] != other.json["path"]
    assert (first.json["decision"], other.json["decision"]) == ("accept", "reject")
    assert first.headers["content-type"] == "application/json"
    assert first.text.endswith("}\n")


def test_requests_that_arrive_while_the_detector_is_busy_share_a_batch(client, detector):
    detector.gate.clear()
    answers = [client.post_later(grey(10))]
    wait_until(lambda: detector.batches == [1])
    answers += [client.post_later(grey(level)) for level in (50, 150, 250)]
    client.wait_for(WAITING, 3)
    detector.gate.set()
    found = [answer.result().json["decision"] for answer in answers]
    assert found == ["reject", "reject", "accept", "accept"]
    assert detector.batches == [1, 3]


# Images that cannot be judged


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"no image", "not an image"),
        (grey(1)[:45], "truncated"),
        (grey(1, side=101), "101 x 101 pixels"),
        (file_of(np.full((8, 8), np.nan, np.float32)), "floating-point"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
    ],
)
def test_a_bad_image_gets_one_line_and_fails_no_other(client, detector, content, reason):
    detector.gate.clear()
    good = client.post_later(grey(200))
    wait_until(lambda: detector.batches == [1])
    bad = client.post(content, "bad.png")
    detector.gate.set()
    assert bad.status == 422
    assert bad.json.keys() == {"path", "error"}
    assert bad.json["path"] == "bad.png"
    assert reason in bad.json["error"]
    assert bad.text.count("\n") == 1
    assert good.result().json["decision"] == "accept"
    assert client.metric('diffguard_images_total{decision="error"}') == 1


def test_an_image_on_which_the_detector_fails_fails_no_other(detector):
    batching = Batching(max_batch=3, max_wait_ms=60_000)
    with serving(detector, batching) as (client, *_):
        answers = [client.post_later(grey(level)) for level in (200, FAILING, 1)]
        found = [answer.result() for answer in answers]
        assert [answer.status for answer in found] == [200, 500, 200]
        assert "decision" not in found[1].json
        assert "no memory" in found[1].json["error"]


# Limits


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data; boundary=x"])
def test_what_is_not_sent_as_an_image_is_refused_with_the_remedy(client, kind):
    answer = client.post(grey(1), Content_Type=kind, **{"Content-Type": kind})
    assert answer.status == 415
    assert "Content-Type: image/png" in answer.json["error"]


def test_a_body_is_limited_whether_or_not_it_says_its_length(client, detector):
    limit = int(0.1 * 2**20)
    padded = grey(200) + bytes(limit - len(grey(200)))
    assert client.post(padded).status == 200
    assert client.post(padded + b"0").status == 413
    assert client.post(iter([padded, b"0"])).status == 413
    answer = client.post(bytes(8 * 2**20))
    assert f"{limit:,} bytes" in answer.json["error"]
    assert detector.batches == [1]


def test_a_name_is_limited_and_control_characters_are_escaped(client):
    assert client.post(grey(1), "x" * 201).status == 400
    answer = client.post(grey(1), "a%0Ab%FF")
    assert answer.text.count("\n") == 1
    assert answer.json["path"].startswith("a\nb")


def test_unknown_routes_and_methods_are_one_line_of_json(client):
    assert client.send("GET", "/docs").status == 404
    answer = client.send("GET", "/v1/decisions")
    assert (answer.status, answer.json) == (405, {"error": "method not allowed"})
    answer = client.send("GET", "/openapi.json")
    assert "image/*" in answer.json["paths"]["/v1/decisions"]["post"]["requestBody"]["content"]


def test_a_full_queue_refuses_with_the_time_to_try_again(detector):
    with serving(detector, Batching(max_batch=1, max_queue=2)) as (client, *_):
        detector.gate.clear()
        accepted = [client.post_later(grey(200)) for _ in range(2)]
        client.wait_for(IN_PROGRESS, 2)
        for image in (grey(1), bytes(8 * 2**20)):
            refused = client.post(image)
            assert refused.status == 503
            assert refused.headers["retry-after"] == "1"
            assert "queue full" in refused.json["error"]
        detector.gate.set()
        assert [answer.result().status for answer in accepted] == [200, 200]
        assert client.post(grey(1)).status == 200
        assert client.metric(code(503)) == 2


def test_a_body_that_does_not_end_is_given_up_and_frees_its_place(client, monkeypatch):
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.05)

    def endless():
        yield b"x"
        time.sleep(0.5)
        yield b"x"

    assert client.post(endless()).status == 408
    client.wait_for(IN_PROGRESS, 0)


def test_a_client_that_leaves_frees_its_place(client):
    with socket.create_connection(("127.0.0.1", client.port)) as leaving:
        head = "POST /v1/decisions HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        leaving.sendall(f"{head}Content-Length: 99\r\n\r\nx".encode())
        client.wait_for(IN_PROGRESS, 1)
    client.wait_for(IN_PROGRESS, 0)


# Who asks


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_another_site_s_page_gets_no_decision(client, detector, headers):
    answer = client.post(grey(1), **headers)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers
    assert detector.batches == []
    assert client.metric(code(403)) == 1


def test_another_host_name_sees_no_route(client):
    for path in ("/health", "/metrics", "/openapi.json", "/nothing"):
        assert client.send("GET", path, Host="rebound.example").status == 403
        assert client.send("GET", path, Host="localhost:1").status in (200, 404)


# Health and metrics


def test_metrics_count_requests_images_and_batches(client, detector):
    for level in (1, 200, 250):
        client.post(grey(level))
    client.post(b"no image")
    client.post(grey(1), **{"Content-Type": "text/plain"})
    for name, value in {
        code(200): 3,
        code(415): 1,
        code(422): 1,
        'diffguard_images_total{decision="accept"}': 2,
        'diffguard_images_total{decision="reject"}': 1,
        'diffguard_images_total{decision="error"}': 1,
        "diffguard_batch_images_sum": 3,
        "diffguard_batch_images_count": len(detector.batches),
        "diffguard_request_seconds_count": 3,
        WAITING: 0,
        IN_PROGRESS: 0,
    }.items():
        assert client.metric(name) == value, name
    assert client.send("GET", "/metrics").headers["content-type"].startswith("text/plain; version")


def test_a_detector_that_fails_on_everything_is_not_healthy(client):
    answer = client.send("GET", "/health")
    assert (answer.status, answer.json["status"], answer.json["threshold"]) == (200, "ready", 0.5)
    for _ in range(MAX_FAILURES):
        assert client.post(grey(FAILING)).status == 500
    answer = client.send("GET", "/health")
    assert (answer.status, answer.json["status"]) == (503, "failed")


# The end


def test_what_was_accepted_is_answered_when_the_server_ends(detector):
    lines: list[dict] = []
    with serving(detector, Batching(max_batch=4), record=lines.append) as (client, server, ended):
        kept = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        kept.request("GET", "/health")
        assert kept.getresponse().read()
        detector.gate.clear()
        answers = [client.post_later(grey(level)) for level in range(100, 110)]
        client.wait_for(IN_PROGRESS, 10)
        # sent on an open connection, but perhaps not read when the server is to end
        kept.request("GET", "/health")
        server.stop()
        assert kept.getresponse().status in (200, 503)
        kept.close()

        def is_closed() -> bool:
            try:
                socket.create_connection(("127.0.0.1", client.port), timeout=1).close()
            except OSError:
                return True
            return False

        wait_until(is_closed)
        assert not ended.done()
        detector.gate.set()
        found = [answer.result() for answer in answers]
        assert [answer.status for answer in found] == [200] * 10
        ended.result(timeout=20)
        assert {line["path"] for line in lines} == {answer.json["path"] for answer in found}


def test_what_cannot_be_recorded_ends_the_server_and_is_not_given_out(detector):
    def record(line: dict) -> None:
        raise InputError("decisions.jsonl: cannot be written")

    for image in (grey(1), b"no image"):
        with serving(detector, record=record) as (client, _, ended):
            answer = client.post(image)
            assert answer.status == 503
            assert answer.json.keys() == {"error"}
            with pytest.raises(InputError, match=r"decisions\.jsonl"):
                ended.result(timeout=20)
