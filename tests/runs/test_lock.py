"""Exclusive locks on run folders."""

import os
import subprocess
import sys

from diffguard_pl.runs.lock import lock_run_folder, releasing_locks

LOCK = (
    "import sys; from diffguard_pl.runs.lock import lock_run_folder; lock_run_folder(sys.argv[1])"
)


def locked_elsewhere(folder) -> subprocess.CompletedProcess[str]:
    """Lock a folder in another process."""
    return subprocess.run([sys.executable, "-c", LOCK, folder], capture_output=True, text=True)


def test_a_folder_has_one_owner_who_is_named_until_it_ends(tmp_path):
    with releasing_locks():
        lock_run_folder(tmp_path / "run")
        lock_run_folder(tmp_path / "run")  # allowed: this process holds it
        assert f"process {os.getpid()} on " in locked_elsewhere(tmp_path / "run").stderr
    done = locked_elsewhere(tmp_path / "run")
    assert done.returncode == 0, done.stderr
