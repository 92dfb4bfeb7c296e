"""Errors of libraries that end a command in one line."""

import pytest

from diffguard_pl.commands.errors import one_line_errors


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that",
        "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
        "Too many open files. Communication with the workers is no longer possible.\nPlease",
    ],
)
def test_a_lost_process_that_reads_images_is_one_line(message):
    with pytest.raises(SystemExit, match=r"num_workers.*ulimit -n") as stopped, one_line_errors():
        raise RuntimeError(message)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Caught RuntimeError in DataLoader worker process 0.\n..."), TypeError("x")],
)
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)), one_line_errors():
        raise error
