"""What a SLURM job does after its processes, with a stand-in for scontrol.

tests/end_to_end/test_slurm.py runs it on a real cluster.
"""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from diffguard_pl.runs import after_job


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Set up a stand-in for scontrol that shows a job; the file that it returns lists the calls."""
    calls = tmp_path / "calls"
    calls.touch()

    def set_up(state: str, minutes_left: float, preempted: str = "None") -> Path:
        end = datetime.now() + timedelta(minutes=minutes_left)
        start = datetime.now() - timedelta(minutes=1)
        shown = (
            f"JobState={state} StartTime={start:%FT%T} EndTime={end:%FT%T} PreemptTime={preempted}"
        )
        program = tmp_path / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" >>{calls}\necho "{shown}"\n')
        program.chmod(0o755)
        return calls

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    return set_up


@pytest.mark.parametrize(
    ("status", "state", "minutes_left", "preempted", "requeued"),
    [
        (138, "RUNNING", 60, "None", True),
        (140, "RUNNING", 60, "None", True),
        (138, "RUNNING", 1, "None", False),
        (143, "RUNNING", 60, "None", False),
        (143, "RUNNING", 60, "2026-01-01T00:00:00", True),
        (138, "PENDING", 60, "None", False),
        (1, "RUNNING", 60, "None", False),
        (0, "RUNNING", 60, "None", False),
    ],
)
def test_a_job_is_requeued_where_its_processes_could_not(
    status, state, minutes_left, preempted, requeued, scontrol
):
    calls = scontrol(state, minutes_left, preempted)
    with pytest.raises(SystemExit) as exit_:
        after_job.main(status)
    assert exit_.value.code == status
    assert ("requeue 77" in calls.read_text()) == requeued


def test_a_job_whose_time_is_nearly_up_prints_how_much_it_needs(scontrol, capsys):
    scontrol("RUNNING", 1)
    with pytest.raises(SystemExit):
        after_job.main(138)
    assert "--time=6" in capsys.readouterr().err
