"""Batches that fill across requests: who shares one, and what a failure ends."""

import threading
import time

import pytest

from diffguard_pl.serve.batching import MAX_FAILURES, Batcher, Batching, Stopped

SOON = 20
NO_WAIT = Batching(max_batch=4, max_wait_ms=0)


class Detector:
    """Function that decides once its gate is open, and fails on items that are marked."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items) -> list[dict]:
        self.batches.append([item["path"] for item in items])
        assert self.gate.wait(SOON)
        if any("fails" in item for item in items):
            raise RuntimeError("no memory\nat all")
        return [{"path": item["path"], "decision": "accept"} for item in items]


@pytest.fixture
def detector() -> Detector:
    return Detector()


def wait_for_batches(detector: Detector, count: int) -> None:
    deadline = time.monotonic() + SOON
    while len(detector.batches) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_waits_while_the_detector_is_busy_shares_batches_in_order(detector):
    sizes: list[int] = []
    batcher = Batcher(detector, NO_WAIT, on_batch=sizes.append)
    detector.gate.clear()
    answers = [batcher.submit({"path": "0"})]
    wait_for_batches(detector, 1)
    answers += [batcher.submit({"path": str(i)}) for i in range(1, 7)]
    assert batcher.queue_length == 6
    detector.gate.set()
    assert [answer.result(SOON)["path"] for answer in answers] == list("0123456")
    assert detector.batches == [["0"], ["1", "2", "3", "4"], ["5", "6"]]
    assert sizes == [1, 4, 2]
    batcher.close()


def test_an_image_waits_for_others_until_the_batch_is_full(detector):
    batcher = Batcher(detector, Batching(max_batch=3, max_wait_ms=60_000))
    answers = [batcher.submit({"path": str(i)}) for i in range(3)]
    assert [answer.result(SOON)["path"] for answer in answers] == list("012")
    assert detector.batches == [["0", "1", "2"]]
    batcher.close()


def test_an_image_waits_for_others_no_longer_than_it_may(detector):
    batcher = Batcher(detector, Batching(max_batch=3, max_wait_ms=50))
    began = time.monotonic()
    assert batcher.submit({"path": "0"}).result(SOON)
    assert time.monotonic() - began >= 0.05
    assert detector.batches == [["0"]]
    batcher.close()


def test_an_image_on_which_the_detector_fails_fails_no_other(detector, capsys):
    lines: list[dict] = []
    batcher = Batcher(detector, Batching(max_batch=3, max_wait_ms=60_000), lines.append)
    items = [{"path": "0"}, {"path": "1", "fails": True}, {"path": "2"}]
    found = [answer.result(SOON) for answer in [batcher.submit(item) for item in items]]
    assert [line.get("decision") for line in found] == ["accept", None, "accept"]
    assert "no memory" in found[1]["error"]
    assert lines == found
    assert capsys.readouterr().err.count("\n") == 1
    batcher.close()


def test_a_detector_that_fails_on_everything_is_broken_until_it_works(detector):
    batcher = Batcher(detector, NO_WAIT)
    for _ in range(MAX_FAILURES):
        assert not batcher.is_broken
        batcher.submit({"path": "0", "fails": True}).result(SOON)
    assert batcher.is_broken
    batcher.submit({"path": "0"}).result(SOON)
    assert not batcher.is_broken
    batcher.close()


def test_a_decision_that_cannot_be_recorded_is_not_given_out_and_ends_the_thread(detector):
    lines, ended = [], threading.Event()

    def record(line: dict) -> None:
        if line["path"] == "1":
            raise OSError("disk full")
        lines.append(line)

    batcher = Batcher(detector, NO_WAIT, record, on_end=ended.set)
    detector.gate.clear()
    answers = [batcher.submit({"path": "first"})]
    wait_for_batches(detector, 1)
    answers += [batcher.submit({"path": str(i)}) for i in range(6)]
    detector.gate.set()
    for answer in answers[:2]:
        assert answer.result(SOON) in lines
    for answer in answers[2:]:
        assert isinstance(answer.exception(SOON), Stopped)
    assert ended.wait(SOON)
    assert "disk full" in str(batcher.failure)
    assert not batcher.is_alive
    with pytest.raises(Stopped):
        batcher.submit({"path": "late"})
    with pytest.raises(Stopped):
        batcher.record({"path": "late", "error": "no image"})
    batcher.close()


def test_closing_decides_on_all_that_wait(detector):
    batcher = Batcher(detector, Batching(max_batch=4, max_wait_ms=60_000))
    answers = [batcher.submit({"path": str(i)}) for i in range(11)]
    batcher.close()
    assert all(answer.done() for answer in answers)
    assert sum(map(len, detector.batches)) == 11
    assert not batcher.is_alive
    with pytest.raises(Stopped):
        batcher.submit({"path": "late"})
