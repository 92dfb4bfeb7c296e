"""Downloads that break off, servers that misbehave, archives that are damaged or evil."""

import hashlib
import itertools
import multiprocessing
import re
import resource
import zipfile
from pathlib import Path

import pytest
from helpers.files import leftovers, zipped
from helpers.server import BODY, Page

from diffguard_pl import InputError
from diffguard_pl.checkpoints import download
from diffguard_pl.checkpoints.download import fetch, google_drive, unzip


def refusal(*args, **settings) -> str:
    with pytest.raises(InputError) as error:
        fetch(*args, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def begun(server, folder: Path) -> int:
    """A download that broke off in the middle and was given up; how much of it there is."""
    url = server.put("a.bin", drops=1, after=600_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "MAX_FAILURES", 0)
        assert "the download is resumed" in refusal(url, folder, "a.bin")
    server.asked.clear()
    return (folder / "a.bin.part").stat().st_size


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def test_a_file_is_fetched_once(server, tmp_path):
    url, digest = server.put("a.bin"), hashlib.sha256(BODY).hexdigest()
    for _ in range(2):
        path = fetch(
            url, tmp_path / "new" / "folder", "b.bin", size=len(BODY), sha256=digest.upper()
        )
    assert path.read_bytes() == BODY
    assert server.ranges == [None]
    assert leftovers(path.parent) == ["b.bin"]


def test_a_dropped_connection_is_taken_up_where_it_broke_off(server, tmp_path):
    url = server.put("a.bin", drops=3, after=300_000)
    assert fetch(url, tmp_path, "a.bin").read_bytes() == BODY
    starts = [int(re.findall(r"\d+", range_)[0]) for range_ in server.ranges[1:]]
    assert server.ranges[0] is None
    assert starts == sorted(starts)
    assert starts[0] > 0
    assert server.sent < len(BODY) + 3 * download.CHUNK_SIZE


def test_a_server_that_ends_every_connection_early_gets_to_the_end(server, tmp_path):
    body = BODY[:100_000]
    url = server.put("a.bin", body, drops=100, after=7_000)
    assert fetch(url, tmp_path, "a.bin").read_bytes() == body
    assert len(server.asked) == 15


def test_a_server_that_hardly_sends_anything_is_given_up_and_the_part_kept(
    server, tmp_path, monkeypatch
):
    # every look at the clock is 50 s after the one before
    monkeypatch.setattr(download, "monotonic", itertools.count(0, 50).__next__)
    monkeypatch.setattr(download, "CHUNK_SIZE", 500)
    url = server.put("a.bin", BODY[:30_000])
    said = refusal(url, tmp_path, "a.bin")
    assert "1,000 bytes a second" in said
    assert "resumed" in said
    assert len(server.asked) == download.MAX_FAILURES
    assert 0 < (tmp_path / "a.bin.part").stat().st_size < 30_000
    monkeypatch.undo()
    assert fetch(url, tmp_path, "a.bin").read_bytes() == BODY[:30_000]


@pytest.mark.parametrize(
    "state",
    [
        *("[]", "3", '"total"', "{}", "[" * 100_000, "\udcff"),
        *('{"total": 5}', '{"total": "5", "version": null}', '{"total": 5, "version": ["1"]}'),
    ],
    ids=range(9),
)
def test_a_part_with_a_record_of_another_shape_is_continued(state, server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    (tmp_path / "a.bin.part.json").write_bytes(state.encode(errors="surrogateescape"))
    assert fetch(server.put("a.bin"), tmp_path, "a.bin").read_bytes() == BODY
    assert leftovers(tmp_path) == ["a.bin"]


def test_a_process_that_is_killed_leaves_the_part_alone(server, tmp_path, monkeypatch):
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    url = server.put("a.bin")
    with monkeypatch.context() as patch:
        patch.setattr(download, "_check_hash", kill)
        with pytest.raises(KeyboardInterrupt):
            fetch(url, tmp_path, "a.bin")
    assert leftovers(tmp_path) == ["a.bin.part", "a.bin.part.json"]
    assert fetch(url, tmp_path, "a.bin").read_bytes() == BODY
    assert leftovers(tmp_path) == ["a.bin"]


def test_a_download_that_was_given_up_is_continued_the_next_time(server, tmp_path):
    kept = begun(server, tmp_path)
    assert 500_000 < kept <= 600_000
    assert fetch(f"{server.url}/a.bin", tmp_path, "a.bin").read_bytes() == BODY
    assert server.ranges == [f"bytes={kept}-"]


def test_a_server_that_cannot_continue_sends_it_again(server, tmp_path):
    begun(server, tmp_path)
    url = server.put("a.bin", ranges=False)
    assert fetch(url, tmp_path, "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("change", [{"etag": '"2"'}, {"body": BODY[::-1] + b"more"}])
def test_a_file_that_has_changed_meanwhile_is_not_mixed_with_the_old(change, server, tmp_path):
    kept = begun(server, tmp_path)
    page = Page(**({"body": BODY[::-1]} | change))
    server.pages["/a.bin"] = page
    assert fetch(f"{server.url}/a.bin", tmp_path, "a.bin").read_bytes() == page.body
    assert server.ranges == [f"bytes={kept}-", None]


def test_a_part_that_came_from_elsewhere_is_continued_and_one_that_is_too_long_is_not(
    server, tmp_path
):
    url, digest = server.put("a.bin"), hashlib.sha256(BODY).hexdigest()
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    (tmp_path / "b.bin.part").write_bytes(BODY + BODY)
    assert fetch(url, tmp_path, "a.bin", sha256=digest).read_bytes() == BODY
    assert fetch(url, tmp_path, "b.bin").read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", f"bytes={2 * len(BODY)}-", None]


def test_a_part_that_is_whole_needs_no_network(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    fetch(
        "http://127.0.0.1:9/a.bin", tmp_path, "a.bin", len(BODY), hashlib.sha256(BODY).hexdigest()
    )


def test_a_file_that_stays_too_short_is_not_taken_for_whole(server, tmp_path):
    url = server.put("a.bin", claims=2 * len(BODY), ranges=False)
    assert url in refusal(url, tmp_path, "a.bin")
    assert leftovers(tmp_path) == ["a.bin.part", "a.bin.part.json"]


def test_a_wrong_hash_names_both_and_removes_the_file(server, tmp_path):
    url = server.put("a.bin")
    said = refusal(url, tmp_path, "a.bin", sha256="0" * 64)
    assert url in said
    assert "0" * 64 in said
    assert hashlib.sha256(BODY).hexdigest() in said
    assert leftovers(tmp_path) == []


def test_a_wrong_size_names_both_and_removes_the_file(server, tmp_path):
    url = server.put("a.bin")
    assert re.search(
        rf"{url}: has 1,200,000 bytes, expected 7;.*again",
        refusal(url, tmp_path, "a.bin", size=7),
    )
    assert leftovers(tmp_path) == []
    (tmp_path / "a.bin").write_bytes(b"from a copy that broke off")
    assert re.search(
        r"a.bin: has 26 bytes, expected 1,200,000; remove it",
        refusal(url, tmp_path, "a.bin", size=len(BODY)),
    )


def test_a_web_page_in_place_of_a_file_is_refused(server, tmp_path, monkeypatch):
    url = server.put("a.bin", b"<html>log in</html>", kind="text/html; charset=utf-8")
    assert "web page" in refusal(url, tmp_path, "a.bin")
    server.put("download", b"<html>quota</html>", kind="text/html")
    assert (
        google_drive("XYZ")
        == "https://drive.usercontent.google.com/download?id=XYZ&export=download&confirm=t"
    )
    monkeypatch.setattr(download, "GOOGLE_DRIVE", f"{server.url}/download?id=")
    said = refusal(google_drive("XYZ"), tmp_path, "a.bin")
    assert "quota" in said
    assert (
        f"drive.google.com/file/d/XYZ/view in a browser and save the file as {tmp_path}/a.bin"
        in said
    )
    assert leftovers(tmp_path) == []


def test_a_missing_file_is_reported_at_once_and_a_busy_server_is_tried_again(server, tmp_path):
    assert "answers 404" in refusal(f"{server.url}/nothing", tmp_path, "a.bin")
    assert len(server.asked) == 1
    url = server.put("busy", status=503)
    assert "answers 503" in refusal(url, tmp_path, "a.bin")
    assert len(server.asked) == 1 + download.MAX_FAILURES


def test_without_a_network_the_url_and_the_place_for_the_file_are_named(tmp_path):
    said = refusal("http://127.0.0.1:9/a.bin", tmp_path, "a.bin")
    assert re.search(rf"http://127.0.0.1:9/a.bin: .*refused.*{tmp_path}/a.bin$", said)


def test_a_full_disk_keeps_what_has_arrived(server, tmp_path):
    url = server.put("a.bin")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (700_000, limits[1])
    )  # writing fails beyond it, as on a full disk
    try:
        said = refusal(url, tmp_path, "a.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "a.bin: cannot be written (File too large)" in said
    assert (tmp_path / "a.bin.part").stat().st_size == 700_000
    assert fetch(url, tmp_path, "a.bin").read_bytes() == BODY
    assert server.ranges == [None, "bytes=700000-"]


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(server.put("a.bin"), tmp_path / "file", "a.bin")


def test_of_two_processes_one_downloads_and_the_other_waits(server, tmp_path):
    url = server.put("a.bin", seconds=0.3)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=fetch, args=(url, tmp_path, "a.bin")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    assert server.ranges == [None]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_progress_is_one_line_where_there_is_no_terminal(server, tmp_path, capsys):
    fetch(server.put("a.bin"), tmp_path, "a.bin", size=len(BODY))
    assert capsys.readouterr().err == "downloading a.bin (1.2 MB)\n"
    fetch(f"{server.url}/a.bin", tmp_path, "b.bin", progress=False)
    assert capsys.readouterr().err == ""


def test_an_archive_is_unpacked_all_of_it_or_some(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x/a.bin": BODY, "x/": b"", "b.txt": b"b"})
    assert unzip(archive, tmp_path / "all") == [
        tmp_path / "all" / "x" / "a.bin",
        tmp_path / "all" / "b.txt",
    ]
    assert (tmp_path / "all" / "x" / "a.bin").read_bytes() == BODY
    assert unzip(archive, tmp_path / "some", ["b.txt"]) == [tmp_path / "some" / "b.txt"]
    assert leftovers(tmp_path / "some") == ["b.txt"]


@pytest.mark.parametrize(
    "evil", ["../evil", "x/../../evil", "/evil", "..\\evil", link("evil")], ids=str
)
def test_a_member_that_would_leave_the_folder_is_refused_before_anything_is_written(evil, tmp_path):
    archive = zipped(tmp_path / "a.zip", {"fine.txt": b"", evil: b"/etc"})
    with pytest.raises(InputError, match="would leave the folder"):
        unzip(archive, tmp_path / "out")
    assert leftovers(tmp_path) == ["a.zip"]


def test_what_a_killed_process_has_left_is_replaced(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x/a.bin": BODY})
    (tmp_path / "out" / "x").mkdir(parents=True)
    (tmp_path / "out" / "x" / "a.bin.part").write_bytes(b"half")
    unzip(archive, tmp_path / "out")
    assert leftovers(tmp_path / "out" / "x") == ["a.bin"]


def test_a_damaged_archive_leaves_no_half_file(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"a.bin": BODY})
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 255
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.zip: damaged"):
        unzip(archive, tmp_path / "out")
    assert leftovers(tmp_path / "out") == []
    archive.write_bytes(content[:-100])
    with pytest.raises(InputError, match=r"a\.zip: damaged"):
        unzip(archive, tmp_path / "out")
