"""Paths of images to decide on."""

import os
import sys
import threading
import time

import pytest
from helpers.images import saved

from diffguard_pl import InputError
from diffguard_pl.datamodules.digits import digits
from diffguard_pl.deploy.path_stream import arriving_lines, image_paths


@pytest.fixture
def give_input(tmp_path, monkeypatch):
    """Sets standard input to a file with the given bytes."""
    opened = []

    def give(content: bytes) -> None:
        (tmp_path / "input").write_bytes(content)
        opened.append((tmp_path / "input").open())
        monkeypatch.setattr(sys, "stdin", opened[-1])

    yield give
    for file in opened:
        file.close()


def test_standard_input_has_one_path_per_line_and_each_counts_once(give_input):
    give_input(b"\xef\xbb\xbfa.png\r\nb.png\n\na.png\nc.png")
    first, *rest = image_paths(["z.png", "-", "b.png"])
    assert list(first) == ["z.png"]
    assert [path for group in rest for path in group] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "-: .*empty"),
        (b"a" * (1 << 21), "-: .*1,048,576 bytes"),
        ("a.png\nb.png\n".encode("utf-16"), "-: .*UTF-16.*UTF-8"),
        (b"a.png\0b.png\0", "-: .*print0.*one per line"),
    ],
)
def test_input_without_paths_is_refused(give_input, content, message):
    give_input(content)
    with pytest.raises(InputError, match=message):
        list(image_paths(["-"]))


def test_a_closed_standard_input_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as Python sets it after `<&-`
    with pytest.raises(InputError, match=r"-: .*closed"):
        list(image_paths(["-"]))


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no images"):
        list(image_paths([str(tmp_path)]))


def test_a_folder_keeps_the_name_that_was_given(tmp_path, monkeypatch):
    saved(digits("test").images[:1], tmp_path / "~nobody", "digit")
    monkeypatch.chdir(tmp_path)
    (group,) = image_paths(["~nobody"])
    assert list(group) == ["~nobody/digit0.png"]


def test_images_are_found_by_suffix_or_content_and_other_files_are_named(tmp_path):
    (known,) = saved(digits("test").images[:1], tmp_path, "digit")
    content = (tmp_path / "digit0.png").read_bytes()
    for name in ("a.jfif", "no_suffix", ".hidden", "c.heic"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("P5 is a format, too")
    (tmp_path / ".git").mkdir()
    passed_over: list[str] = []
    (group,) = image_paths([str(tmp_path)], passed_over)
    assert [os.path.basename(path) for path in group] == [
        *(".hidden", "a.jfif", "c.heic", "digit0.png", "no_suffix")
    ]
    assert known in group
    assert passed_over == [f"{tmp_path}/.git/", f"{tmp_path}/notes.txt"]


def test_a_steady_stream_of_paths_does_not_hold_them_up(monkeypatch):
    source, target = os.pipe()

    def write() -> None:
        # Faster than a group waits, so that no pause ever ends a group.
        for i in range(60):
            os.write(target, f"{i}.png\n".encode())
            time.sleep(0.01)
        os.close(target)

    with os.fdopen(source) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        writer = threading.Thread(target=write)
        writer.start()
        groups = list(arriving_lines())
        writer.join()
    lines = [line for group in groups for line in group]
    assert lines == [f"{i}.png".encode() for i in range(60)]
    assert len(groups) > 3
