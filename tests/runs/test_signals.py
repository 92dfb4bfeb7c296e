"""Graceful termination on signals."""

import signal
import subprocess
import threading

import pytest

from diffguard_pl.runs import signals
from diffguard_pl.runs.signals import GracefulTermination, StopRequested

needs_requeue_signals = pytest.mark.skipif(
    not signals.REQUEUE_SIGNALS, reason="this system lacks SIGUSR1"
)


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        pytest.param("SIGUSR1", marks=needs_requeue_signals),
        pytest.param("SIGUSR2", marks=needs_requeue_signals),
    ],
)
def test_a_signal_interrupts_the_program(name):
    with GracefulTermination().handling_signals(), pytest.raises(StopRequested, match=name):
        signal.raise_signal(signal.Signals[name])


@needs_requeue_signals
def test_a_deferred_signal_waits_for_the_check_and_the_first_one_counts():
    before = signal.getsignal(signal.SIGUSR1)
    forwarded = []
    with GracefulTermination().handling_signals() as termination:
        termination.deferred, termination.forward_signal = True, forwarded.append
        termination.check()
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopRequested, match="SIGUSR1"):
            termination.check()
    assert forwarded == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_outside_the_main_thread_no_handler_is_installed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def handle() -> None:
        with GracefulTermination().handling_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=handle)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("job", "requeued"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}, "8_1"),
    ],
)
def test_a_slurm_job_is_requeued_by_its_number(monkeypatch, job, requeued):
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert signals.requeue_slurm_job() == requeued
    assert commands == ([["scontrol", "requeue", requeued]] if requeued else [])
