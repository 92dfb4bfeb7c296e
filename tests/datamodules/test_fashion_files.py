"""The original files of Fashion-MNIST: where they are found, and that no other file is read."""

import gzip

import numpy as np
import pytest
from helpers.idx_files import entries, idx, nowhere, save, values_of

from diffguard_pl import InputError
from diffguard_pl.datamodules import fashion_files
from diffguard_pl.datamodules.fashion_files import DEBIAN, FILES, TORCHVISION, official, read

__all__ = ["nowhere"]

SMALL = values_of("t10k", 5)
IMAGES, LABELS = SMALL


@pytest.fixture(autouse=True)
def small(monkeypatch, nowhere):
    for name, expected in entries(SMALL).items():
        monkeypatch.setitem(FILES, name, expected)


def save_all(folder, packed=True):
    for name, values in SMALL.items():
        save(folder, name, values, packed)


@pytest.mark.parametrize("subfolder", [".", TORCHVISION], ids=["flat", "torchvision"])
@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_a_folder_of_files_is_read(tmp_path, subfolder, packed):
    save_all(tmp_path / "mine" / subfolder, packed)
    images, labels = official("t10k", str(tmp_path / "mine"))
    assert np.array_equal(images, SMALL[IMAGES])
    assert np.array_equal(labels, SMALL[LABELS])


def test_a_folder_without_the_files_names_file_and_remedy(tmp_path):
    save_all(fashion_files.DEBIAN)  # a folder that was named is not replaced by another
    with pytest.raises(InputError, match=rf"data.root={tmp_path}: {IMAGES} .*apt install"):
        official("t10k", str(tmp_path))


def test_debians_files_come_before_the_cache(nowhere):
    save_all(fashion_files.DEBIAN)
    save(nowhere / TORCHVISION, IMAGES, np.zeros((5, 28, 28), np.uint8))
    assert np.array_equal(official("t10k")[0], SMALL[IMAGES])


def test_without_files_they_are_downloaded_once(server, checkpoint_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_files, "SERVER", f"{server.url}/")
    save_all(tmp_path / "published")
    for name in SMALL:
        server.put(f"{name}.gz", tmp_path / "published" / f"{name}.gz")
    assert np.array_equal(official("t10k")[0], SMALL[IMAGES])
    official.cache_clear()
    assert np.array_equal(official("t10k")[1], SMALL[LABELS])
    assert [path for path, _ in server.asked] == [f"/{name}.gz" for name in SMALL]


def test_a_download_that_fails_names_the_other_sources(server, checkpoint_cache, monkeypatch):
    monkeypatch.setattr(fashion_files, "SERVER", f"{server.url}/")
    server.put(f"{IMAGES}.gz", gzip.compress(b"a page of the hotel's network"))
    with pytest.raises(InputError, match=rf"{IMAGES}.gz: .*SHA-256.*data.root.*apt install"):
        official("t10k")
    monkeypatch.setattr(fashion_files, "SERVER", "http://127.0.0.1:1/")
    with pytest.raises(InputError, match=rf"{IMAGES}.gz: .*network.*data.root.*apt install"):
        official("t10k")


def content(kind: str) -> bytes:
    """A file that is not the expected one."""
    right = idx(SMALL[IMAGES])
    return {
        "truncated": right[:-1],
        "endless": right + bytes(10**6),
        "empty": b"",
        "other header": b"\0\0\x0d" + right[3:],
        "other images": right[:-1] + b"\1",
    }[kind]


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("kind", ["truncated", "endless", "empty", "other header", "other images"])
def test_another_file_of_the_name_is_refused(tmp_path, kind, packed):
    file = tmp_path / (f"{IMAGES}.gz" if packed else IMAGES)
    file.write_bytes(gzip.compress(content(kind)) if packed else content(kind))
    with pytest.raises(InputError, match=rf"^{file}: .*another dataset.*data.root"):
        read(file)


@pytest.mark.parametrize("damage", [slice(0, -9), slice(5, None), slice(0, 0)])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    file = tmp_path / f"{IMAGES}.gz"
    file.write_bytes(gzip.compress(idx(SMALL[IMAGES]))[damage])
    with pytest.raises(InputError, match=rf"^{file}: is (damaged|truncated).*data.root"):
        read(file)


def test_a_folder_in_the_place_of_a_file_is_no_file(tmp_path):
    (tmp_path / IMAGES).mkdir()
    with pytest.raises(InputError, match=f"{IMAGES} not found"):
        official("t10k", str(tmp_path))
    with pytest.raises(InputError, match=rf"^{tmp_path / IMAGES}: cannot be read"):
        read(tmp_path / IMAGES)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_debians_files_are_the_published_ones(monkeypatch):
    monkeypatch.undo()
    images, labels = official("t10k", str(DEBIAN))
    assert images.shape == FILES[IMAGES].shape == (10000, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10
