"""Shared fixtures: the golden runs of the original, and the embedded benchmark."""

import gc
import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers.windows import hide_posix

if os.environ.get("WITHOUT_POSIX"):
    hide_posix()

import diffguard_pl
from diffguard_pl import DiffGuard
from diffguard_pl.commands import calibrate

pytest_plugins = ["helpers.server"]

# A shell makes what it starts in the background ignore Ctrl+C, which the tests send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that wait for SLURM, so that other processes do not wait for them."""
    items.sort(key=lambda item: "test_slurm" not in item.nodeid)


def pytest_collection_finish() -> None:
    """Leave what the tests import out of garbage collections, which would search it each time."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # else nanobind reports leaks at the end


@pytest.fixture(scope="session")
def digits_ldm() -> DiffGuard:
    return diffguard_pl.load("digits_ldm")


@pytest.fixture(scope="session")
def digits_gdm() -> DiffGuard:
    return diffguard_pl.load("digits_gdm")


@pytest.fixture(scope="session")
def file(tmp_path_factory) -> Path:
    """What the command writes for the digits."""
    folder = tmp_path_factory.mktemp("calibrated")
    settings = ["--model.steps", "5", "--model.discrepancies", "[maps, kl]", "--tpr", "0.95"]
    calibrate.main(["--config", "digits_ldm", *settings, "--trainer.default_root_dir", str(folder)])
    return folder / "detector.json"


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()
