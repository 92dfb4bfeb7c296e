"""Damaged detector files and decision logs: as they were written, or one line."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.mutations import damaged, fuzz, mutated, outcome
from hypothesis import given
from hypothesis import strategies as st

from diffguard_pl import Detector
from diffguard_pl.deploy.decision_log import DecisionLog
from diffguard_pl.deploy.detector_file import shipped_detector

SHIPPED = shipped_detector("digits_ldm").read_bytes()
CONTENT = json.loads(SHIPPED)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("detector") / "detector.json"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load("digits_ldm", device="cpu")


def assert_equal(found: Detector, expected: Detector) -> None:
    """Check that two detectors with the same model decide alike."""
    for name in ("score", "tpr", "preparation", "class_names", "precision", "tf32", "threshold"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.combination == expected.combination
    assert np.array_equal(found.calibration, expected.calibration)
    assert found.reference.keys() == expected.reference.keys()


@fuzz(150)
@given(content=damaged(SHIPPED))
def test_a_damaged_detector_file_decides_as_before_or_is_refused(file, detector, content):
    file.write_bytes(content)
    found = outcome(lambda: Detector.load(file, model=detector.model, device="cpu"))
    if found is not None:
        assert_equal(found, detector)


@fuzz(150)
@given(content=mutated(CONTENT))
def test_a_mutated_detector_file_decides_as_before_or_is_refused(file, detector, content):
    file.write_text(json.dumps(content))
    found = outcome(lambda: Detector.load(file, model=detector.model, device="cpu"))
    if found is not None:
        assert_equal(found, detector)


@pytest.mark.parametrize(
    "options", [{}, {"indent": 4}, {"sort_keys": True}, {"separators": (",", ":")}]
)
def test_another_layout_of_the_json_changes_nothing(file, detector, options):
    file.write_text(json.dumps(CONTENT, **options))
    assert_equal(Detector.load(file, model=detector.model, device="cpu"), detector)


# Decision logs

LINES = [
    {
        "path": "a.png",
        "decision": "accept",
        "label": 1,
        "class": "1",
        "score": -0.5,
        "p_value": 0.5,
    },
    {"path": 'b\n",=1.png', "decision": "reject", "label": 0, "class": "0", "score": 2e-9},
    {"path": "=c.png", "error": "file not found"},
]


@pytest.fixture(scope="module", params=["out.jsonl", "out.csv"])
def log(request, tmp_path_factory) -> tuple[Path, bytes, bytes]:
    """The file of a log, its content, and that of its companion."""
    path = tmp_path_factory.mktemp("log") / request.param
    written = DecisionLog(path, resume=False)
    written.begin("hash", 0.95)
    for line in LINES:
        written.write(line)
    written.close()
    return path, path.read_bytes(), written.companion.read_bytes()


@fuzz(200)
@given(data=st.data())
def test_a_damaged_decision_log_is_continued_after_whole_lines_or_stays_as_it_is(log, data):
    path, content, origin = log
    companion = path.with_name(f".{path.name}.detector")
    content = data.draw(st.just(content) | damaged(content))
    origin = data.draw(st.just(origin) | damaged(origin))
    path.write_bytes(content)
    companion.write_bytes(origin)

    def resume() -> DecisionLog:
        opened = DecisionLog(path, resume=True)
        try:
            opened.begin("hash", 0.95)
        finally:
            opened.close()
        return opened

    resumed = outcome(resume)
    if resumed is None:
        assert path.read_bytes() == content
        return
    left = path.read_bytes()
    # a file that was cut off in its first line begins anew
    assert content.startswith(left) or left.count(b"\n") == 1
    count = len(resumed.paths)
    assert resumed.rejected + resumed.unreadable <= left.count(b"\n")
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in left.decode().split("\n")[:-1]]
        assert resumed.paths == {line["path"] for line in lines}
    assert count <= left.count(b"\n")


def test_detector_settings_that_are_compared_are_all_there(detector):
    """What a file decides on is compared above, apart from provenance."""
    compared = {"score", "threshold", "preparation", "class_names", "precision", "tf32"}
    compared |= {"combination", "calibration", "reference"}
    of_the_model = {"model", "method", "weights", "fitted", "about"}
    names = {field.name for field in dataclasses.fields(type(_content(detector)))}
    assert names <= compared | of_the_model


def _content(detector: Detector):
    from diffguard_pl.deploy.detector_file import DetectorFile

    return DetectorFile.read(shipped_detector("digits_ldm"))
