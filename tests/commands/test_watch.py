"""``diffguard-pl watch``: shares, p-values and alarms of decision logs."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import beta

from diffguard_pl.commands import watch
from diffguard_pl.deploy.detector_file import DetectorFile, shipped_detector


@pytest.fixture(scope="module")
def calibration() -> np.ndarray:
    return DetectorFile.read(shipped_detector("digits_ldm")).calibration


def lines(scores: np.ndarray, calibration: np.ndarray) -> list[dict]:
    """Return what ``score`` writes of images with these scores."""
    found = []
    for i, score in enumerate(scores):
        p = (1 + (calibration <= score).sum()) / (len(calibration) + 1)
        known = not np.isnan(score)
        found.append(
            {
                "path": f"{i}.png",
                "decision": "accept" if known and p > 0.05 else "reject",
                "score": float(score) if known else None,
                "p_value": float(p) if known else None,
            }
        )
    return found


def write(path: Path, found: list[dict], tpr: float | None = 0.95) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    else:
        path.write_text("".join(json.dumps(line) + "\n" for line in found))
    if tpr is not None:
        path.with_name(f".{path.name}.detector").write_text(json.dumps({"tpr": tpr}))
    return str(path)


def scores(calibration: np.ndarray, images: int, strange: int, seed: int = 0) -> np.ndarray:
    """Return in-distribution scores and, behind them, those of strange images."""
    rng = np.random.default_rng(seed)
    usual = rng.choice(calibration, images) + 1e-9 * rng.normal(size=images)
    return np.concatenate([usual, np.full(strange, calibration.min() - 1) + rng.random(strange)])


def run(capsys, *args: str) -> tuple[dict, int]:
    try:
        watch.main([*args, "--json"])
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    return json.loads(capsys.readouterr().out), status


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_stream_without_a_shift(suffix, tmp_path, capsys, calibration):
    log = write(tmp_path / f"a.{suffix}", lines(scores(calibration, 300, 0), calibration))
    found, status = run(capsys, log, "--detector", "digits_ldm", "--window", "100")
    assert (status, found["alarm"], found["exact"], found["expected"]) == (
        0,
        None,
        True,
        pytest.approx(0.05),
    )
    assert found["total"]["decisions"] == sum(part["decisions"] for part in found["windows"]) == 300
    assert [part["first"] for part in found["windows"]] == [0, 100, 200]
    rejected = found["total"]["rejected"]
    low = beta.ppf(0.025, rejected, 300 - rejected + 1)
    assert found["total"]["low"] == pytest.approx(low)
    assert found["uniform_p"] > 0.001


def test_a_shift_raises_an_alarm_and_is_drawn(tmp_path, capsys, calibration):
    first = write(tmp_path / "a.jsonl", lines(scores(calibration, 200, 0), calibration))
    second = write(tmp_path / "b.jsonl", lines(scores(calibration, 0, 60), calibration))
    plot = tmp_path / "watch.png"
    found, status = run(capsys, first, second, "--detector", "digits_ldm", "--plot", str(plot))
    assert status == watch.ALARM_STATUS
    assert 200 <= found["alarm"] < 230
    assert found["alarm_path"] == f"{found['alarm'] - 200}.png"
    assert Image.open(plot).width > 400

    with pytest.raises(SystemExit):
        watch.main([first, second])
    text = capsys.readouterr().out
    assert "260 decisions" in text
    assert "ALARM at decision 2" in text
    assert "--detector makes it exact" in text


def test_images_that_could_not_be_judged_count_as_strange(tmp_path, capsys, calibration):
    usual, strange = scores(calibration, 60, 0), np.full(40, np.nan)
    found = lines(np.concatenate([usual, strange]), calibration)
    log = write(tmp_path / "a.jsonl", [*found, {"path": "x", "error": "damaged"}])
    for settings in ([], ["--detector", "digits_ldm"]):
        summary, status = run(capsys, log, *settings)
        assert (summary["not_judged"], summary["unreadable"]) == (40, 1)
        assert status == watch.ALARM_STATUS


def test_a_stream_is_read_from_stdin_while_it_is_written(capsys, calibration, monkeypatch):
    text = "".join(json.dumps(line) + "\n" for line in lines(calibration[:30], calibration))
    monkeypatch.setattr("sys.stdin", io.StringIO(text + '{"path": "half'))
    found, _ = run(capsys, "-")
    assert found["total"]["decisions"] == 30
    assert found["expected"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there are none"),
        ("no json\n", "line 1 is not JSON"),
        ('{"a": 1}\n', "line 1 is no decision"),
        ('{"decision": "accept", "score": "x"}\n', "score x is no number"),
        ('{"decision": "accept", "score": 1, "p_value": 2}\n', r"outside of \[0, 1\]"),
    ],
)
def test_what_is_no_log_is_named(content, message, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        watch.main([str(tmp_path / "a.jsonl")])
    assert stopped.value.code != watch.ALARM_STATUS
    with pytest.raises(SystemExit):
        watch.main([str(tmp_path / "missing.jsonl")])
    import re

    assert re.search(message, f"{stopped.value} {capsys.readouterr()}")
