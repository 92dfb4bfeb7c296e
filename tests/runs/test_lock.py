"""Exclusive locks between processes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffguard_pl import InputError
from diffguard_pl.runs import lock as locks
from diffguard_pl.runs.lock import Lock, lock_new_run_folder, lock_run_folder, releasing_locks

pytestmark = pytest.mark.skipif(
    "WITHOUT_POSIX" in os.environ, reason="the other processes of these tests have locks"
)
LOCK = """
import socket, sys
from diffguard_pl.runs import lock

if "--without-locks" in sys.argv:
    import fcntl
    def flock(*args):
        raise OSError(int(sys.argv[sys.argv.index("--without-locks") + 1]), "no locks")
    fcntl.flock = flock
if "--host" in sys.argv:
    socket.gethostname = lambda: sys.argv[sys.argv.index("--host") + 1]
if "--seconds" in sys.argv:
    lock.LEASE_SECONDS = float(sys.argv[sys.argv.index("--seconds") + 1])
lock.lock_run_folder(sys.argv[1])
if "--hold" in sys.argv:
    print("locked", flush=True)
    sys.stdin.read()
"""
NO_LOCKS = pytest.mark.parametrize(
    "error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get
)


def locked_elsewhere(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """Lock a folder in another process."""
    command = [sys.executable, "-c", LOCK, folder, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def holder(folder: Path, *args: object) -> subprocess.Popen:
    """Start a process that holds the lock of a folder until it is killed."""
    command = [sys.executable, "-c", LOCK, folder, *map(str, args), "--hold"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def killed(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def without_locks(monkeypatch):
    """Let flock fail as on a file system without locks."""
    fcntl = pytest.importorskip("fcntl")

    def set_up(error: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(fcntl, "flock", flock)

    return set_up


def test_a_folder_has_one_owner_who_is_named_until_it_ends(tmp_path):
    with releasing_locks():
        lock_run_folder(tmp_path / "run")
        lock_run_folder(tmp_path / "run")  # allowed: this process holds it
        assert f"process {os.getpid()} on " in locked_elsewhere(tmp_path / "run").stderr
    done = locked_elsewhere(tmp_path / "run")
    assert done.returncode == 0, done.stderr


@NO_LOCKS
def test_without_locks_of_the_file_system_a_lease_excludes_others(tmp_path, without_locks, error):
    without_locks(error)
    process = holder(tmp_path, "--without-locks", error)
    try:
        with pytest.raises(InputError, match=rf"process {process.pid} on .*wait.*remove .*lease"):
            lock_run_folder(tmp_path)
    finally:
        killed(process)
    with releasing_locks():
        lock_run_folder(tmp_path)  # its holder has ended, on this host
    assert list(tmp_path.iterdir()) == []


def test_the_lease_of_a_process_that_was_killed_on_another_host_expires(
    tmp_path, without_locks, monkeypatch, capsys
):
    without_locks(errno.ENOSYS)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    process = holder(tmp_path, "--without-locks", errno.ENOSYS, "--host", "b", "--seconds", "1")
    with pytest.raises(InputError, match=rf"process {process.pid} on b,.*remove"):
        lock_run_folder(tmp_path)
    killed(process)
    with releasing_locks():
        lock_run_folder(tmp_path)
    assert "process" in capsys.readouterr().err


def test_a_lease_of_another_version_is_refused_with_the_remedy(tmp_path, without_locks):
    without_locks(errno.ENOSYS)
    process = holder(tmp_path, "--without-locks", errno.ENOSYS, "--seconds", "7")
    try:
        with pytest.raises(InputError, match=r"remove .*\.lease"):
            lock_run_folder(tmp_path)
    finally:
        killed(process)


def test_a_released_lock_leaves_no_file_and_can_be_taken_again(tmp_path):
    for _ in range(2):
        lock = Lock(tmp_path / ".lock")
        assert lock.acquire()
        assert not Lock(tmp_path / ".lock").acquire()
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_a_run_goes_with_it_if_it_stays_empty(tmp_path):
    (tmp_path / "kept").mkdir()
    with releasing_locks():
        lock_run_folder(tmp_path / "kept")
        lock_run_folder(tmp_path / "runs" / "ldm" / "a")
        assert lock_new_run_folder(tmp_path / "runs" / "ldm" / "a").name == "a-2"
        (lock_new_run_folder(tmp_path / "results") / "scores").touch()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
        "kept",
        "results",
        "results/scores",
    }


@pytest.mark.parametrize("results", [False, True])
def test_a_run_that_fails_before_it_has_results_leaves_no_folder(tmp_path, results):
    def fail(folder: Path) -> None:
        with releasing_locks():
            lock_run_folder(folder)
            for name in ("run.json", "config.yaml"):
                (folder / name).touch()
            if results:
                (folder / "scores").mkdir()
            raise InputError("data: missing")

    with pytest.raises(InputError, match="data"):
        fail(tmp_path / "runs" / "a")
    assert (tmp_path / "runs" / "a" / "run.json").exists() == results
    assert (tmp_path / "runs").exists() == results


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/run: cannot be written \(Not a directory\)"):
        lock_run_folder(tmp_path / "file" / "run")
