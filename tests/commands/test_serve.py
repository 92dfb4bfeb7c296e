"""The command ``diffguard-pl serve``."""

import json
import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="FastAPI, of the extra serve, is not installed")

from helpers import preloaded
from helpers.images import saved
from helpers.served import Client

from diffguard_pl.commands import serve, watch
from diffguard_pl.datamodules.digits import digits

READY_IN = 90
"""Seconds, generous for a busy machine."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detector", "nowhere.json"], "nowhere.json: no such file"),
        (["--port", "70000"], "--port 70000"),
        (["--allow-host", "http://a"], "--allow-host"),
        (["--max-mb", "0"], "--max-mb 0: must be more than 0"),
        (["--max-batch", "0"], "--max-batch 0: must be at least 1"),
        (["--max-wait-ms", "-1"], "--max-wait-ms -1: must be at least 0"),
        (["--max-wait-ms", "nan"], "--max-wait-ms nan"),
        (["--max-queue", "31"], "--max-queue 31: must be at least --max-batch, 32"),
        (["--log", "/proc/nothing/log.jsonl"], "/proc/nothing/log.jsonl: cannot be written"),
    ],
)
def test_a_mistake_is_refused_in_one_line(options, message):
    with pytest.raises(SystemExit) as stopped:
        serve.main(["--port", "0", "--detector", "digits_ldm", *options])
    assert str(stopped.value).startswith(f"error: {message}")
    assert "\n" not in str(stopped.value)


def test_the_file_of_another_program_is_no_log(tmp_path):
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit, match=r"log\.jsonl: is not a decision log"):
        serve.main(
            ["--detector", "digits_ldm", "--port", "0", "--log", str(tmp_path / "log.jsonl")]
        )


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(
        "lightning_utilities.core.imports.RequirementCache", lambda name: name != "uvicorn"
    )
    remedy = r"^error: uvicorn is not installed; pip install fastapi uvicorn$"
    with pytest.raises(SystemExit, match=remedy):
        serve.main(["--detector", "digits_ldm"])


def test_sigterm_loses_no_request_in_flight(tmp_path, capsys):
    paths = saved(digits("test").images[:4], tmp_path, "digit")
    log = tmp_path / "log.jsonl"
    command = ["-m", "diffguard_pl", "serve", "--detector", "digits_ldm", "--port", "0"]
    # so that all of them wait when the signal comes
    command += ["--log", str(log), "--max-wait-ms", "1500"]
    with preloaded.start(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert select.select([process.stdout], [], [], READY_IN)[0], "it says nothing"
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        client = Client(int(line.split()[0].rpartition(":")[2]))
        answers = [client.post_later(Path(path).read_bytes(), Path(path).name) for path in paths]
        client.wait_for("diffguard_images_in_progress", len(paths))
        process.send_signal(signal.SIGTERM)
        found = [answer.result() for answer in answers]
        _, message = process.communicate(timeout=60)
        assert process.wait(timeout=10) == 0
    assert [answer.status for answer in found] == [200] * len(paths)
    assert message.startswith("stopped by SIGTERM; ")
    assert message.count("\n") == 1

    # the log is that of the command `score`
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    assert sorted(line["path"] for line in lines) == [Path(path).name for path in paths]
    watch.main([str(log), "--detector", "digits_ldm"])
    assert capsys.readouterr().out.startswith(f"{len(paths)} decisions")
