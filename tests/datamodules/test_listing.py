"""Files below a folder: which are images by their names, and which are passed over."""

import os

import pytest
from helpers import layouts
from PIL import Image

from diffguard_pl import InputError
from diffguard_pl.datamodules import ClassFolders, ImageDirectory
from diffguard_pl.datamodules.formats import FORMATS, READABLE_SUFFIXES
from diffguard_pl.datamodules.listing import list_files, list_images


def test_the_suffixes_are_those_of_the_formats_that_are_read():
    assert {".jfif", ".jpe", ".jp2", ".ico", ".mpo", ".apng", ".pnm"} <= READABLE_SUFFIXES
    assert not {".psd", ".eps", ".pdf", ".heic"} & READABLE_SUFFIXES
    assert {Image.EXTENSION[suffix] for suffix in READABLE_SUFFIXES} == {*FORMATS, "MPO"}


@pytest.mark.parametrize("name", sorted(READABLE_SUFFIXES - {".pfm"}))
def test_every_image_that_is_read_when_named_is_listed(name, tmp_path):
    # by its content, which need not be what the suffix says
    (tmp_path / f"a{name.upper()}").write_bytes(
        layouts.encoded(layouts.photographs()[0].resize((32, 32)), "PNG")
    )
    source = ImageDirectory(str(tmp_path))
    assert layouts.prepared(source)[0]["image"].shape == (3, 32, 32)


def test_an_image_of_a_format_that_is_not_read_is_listed_with_a_reason(tmp_path):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "photo.HEIC").write_bytes(heic)
    (tmp_path / "cat" / "drawing.psd").write_bytes(b"8BPS" + bytes(100))
    for source in (ImageDirectory(str(tmp_path)), ClassFolders(str(tmp_path))):
        drawing, photo = (layouts.prepared(source)[i]["error"] for i in range(2))
        assert "not an image" in drawing
        assert "pip install pillow-heif" in photo


def test_other_files_and_hidden_ones_are_passed_over(tmp_path):
    layouts.save(tmp_path, ["a.png", "b/.hidden.png", ".snapshot/c.png", "b/d.jpg"], side=20)
    (tmp_path / "b" / "notes.txt").write_text("none")
    (tmp_path / "no_suffix").write_text("none")
    listing = list_files(tmp_path)
    assert listing.images == ["a.png", "b/d.jpg"]
    assert listing.others == [".snapshot/", "b/.hidden.png", "b/notes.txt", "no_suffix"]
    assert listing.folders == ["b"]


@pytest.mark.parametrize("added", ["@eaDir", "__MACOSX", "lost+found", ".ipynb_checkpoints"])
def test_a_folder_that_a_system_adds_is_no_class(tmp_path, added):
    layouts.save(tmp_path, ["cat/a.png", "dog/b.png", f"{added}/cat/a.png"], side=20)
    assert ClassFolders(str(tmp_path)).names == ["cat", "dog"]
    assert list_files(tmp_path).others == [f"{added}/"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    layouts.save(tmp_path, ["a.png", "locked/b.png"], side=20)
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list_files(tmp_path).images == ["a.png", "locked"]
    with pytest.raises(InputError, match="locked: cannot be read"):
        list_files(tmp_path / "locked")


def test_a_folder_without_images_names_the_suffixes(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"no images.*\.avif.*\.jfif"):
        list_images(tmp_path)
