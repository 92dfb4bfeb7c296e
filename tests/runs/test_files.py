"""Atomic file writes."""

import os

import pytest

from diffguard_pl import InputError
from diffguard_pl.runs.files import atomic_write


def test_concurrent_writers_of_one_file_do_not_meet(tmp_path):
    with atomic_write(tmp_path / "file") as one, atomic_write(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("before")

    def interrupted() -> None:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_as_readable_as_any_new_one(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    (tmp_path / "folder").write_text("in the way")
    with (
        pytest.raises(
            InputError, match=r"folder/file: cannot be written \(File exists\).*--resume"
        ),
        atomic_write(tmp_path / "folder" / "file"),
    ):
        pass
