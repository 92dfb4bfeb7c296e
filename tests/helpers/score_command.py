"""Calls of the command ``diffguard-pl score``."""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from diffguard_pl.commands import score
from helpers import preloaded


@dataclass
class Scored:
    """What a call of the command leaves.

    Attributes:
        status: Exit status.
        lines: Lines on standard output, parsed.
        message: Error, or the text on standard error.
    """

    status: int
    lines: list[dict[str, Any]]
    message: str


class ScoreCommand:
    """The command with a detector file, in this process."""

    def __init__(self, detector: Path, capsys: pytest.CaptureFixture[str]):
        self.detector, self.capsys = detector, capsys

    def __call__(self, *args: str) -> Scored:
        self.capsys.readouterr()
        status = 0
        try:
            score.main(["--detector", str(self.detector), *args])
        except SystemExit as ended:
            if isinstance(ended.code, str):
                return Scored(1, [], ended.code)
            status = ended.code or 0
        printed = self.capsys.readouterr()
        lines = [json.loads(line) for line in printed.out.splitlines()]
        return Scored(status, lines, printed.err)


def start_score(detector: Path, *args: str, **options: Any) -> preloaded.Process:
    """Start the command in another process."""
    command = ["-m", "diffguard_pl", "score", "--detector", str(detector), *args]
    return preloaded.start(command, stderr=subprocess.PIPE, **options)


def interrupt_after(process: preloaded.Process, out: Path, lines: int, signum: int) -> str:
    """Signal the command's process group once it has written some lines; return its standard error.

    Args:
        process: The command, in a session of its own.
        out: File of the decisions.
        lines: Number of lines to wait for; 0 to wait only for the file.
        signum: Number of the signal.
    """
    deadline = time.monotonic() + 120
    while not out.exists() or out.read_text().count("\n") < lines:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signum)
    _, message = process.communicate(timeout=60)
    return message
