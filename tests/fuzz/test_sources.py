"""Damaged image lists and odd folders: every line counts, or the list is named."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.mutations import damaged, fuzz, outcome
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from diffguard_pl.datamodules.sources import ClassFolders, ImageDirectory, ImageList

LIST = b"""# images of two classes
cats/a.png 0
cats/a b.png 0
dogs/c.jpg  1
dogs/d\xc3\xa9.png {"label": 1, "source": "x"}
dogs/e.png {'label': -1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("folder")


@fuzz(300)
@given(content=damaged(LIST))
def test_every_line_of_a_damaged_list_is_an_image_below_the_root(folder, content):
    (folder / "list.txt").write_bytes(content)
    entries = outcome(lambda: ImageList(str(folder / "list.txt"), str(folder)).entries)
    if entries is None:
        return
    lines = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    assert len(entries) == len(lines)
    for entry, line in zip(entries, lines, strict=True):
        assert line.startswith(entry.path)
        label = line.removeprefix(entry.path).strip()
        found = eval(label, {}) if "{" in label else {"label": int(label)}
        assert entry.label == found["label"]
        root = os.path.realpath(folder)
        assert os.path.realpath(folder / entry.path).startswith(root)


NAMES = st.sampled_from(
    [
        "0",
        "1",
        "10",
        "2",
        "cat",
        "Cat",
        "a b",
        "\u00e9",
        ".hidden",
        "val",
        "x.png",
        "a\nb",
        "-1",
        "no",
    ]
)
IMAGE_NAMES = st.sampled_from(
    [
        "a.png",
        "A.PNG",
        "b.jpg",
        ".a.png",
        "no suffix",
        "x.txt",
        "a.png.txt",
        "\u00e9.webp",
        "a\nb.png",
    ]
)
TREES = st.dictionaries(
    NAMES, st.lists(st.tuples(st.sampled_from(["", "deep", ".hidden"]), IMAGE_NAMES), max_size=3)
)


def plant(tree: dict[str, list[tuple[str, str]]], root: Path) -> None:
    """Write a folder of class folders, some of whose images are one folder deeper."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, images in tree.items():
        (root / name).mkdir()
        for below, image in images:
            (root / name / below).mkdir(exist_ok=True)
            Image.new("RGB", (2, 2)).save(root / name / below / image, "png")


def by_torchvision(root: Path) -> tuple[list[str], list[tuple[str, int]]] | None:
    """Return the classes and samples of ``ImageFolder``; None if it refuses the folder."""
    try:
        found = ImageFolder(str(root))
    except FileNotFoundError:
        return None
    samples = [(Path(path).relative_to(root).as_posix(), label) for path, label in found.samples]
    return found.classes, samples


@fuzz(120)
@given(tree=TREES)
def test_class_folders_are_numbered_as_torchvision_does(folder, tree):
    root = folder / "classes"
    plant(tree, root)
    source = ClassFolders(str(root))
    entries = outcome(lambda: source.entries)
    # torchvision counts hidden folders and takes hidden files
    for hidden in [*root.rglob(".*")]:
        if hidden.is_dir():
            shutil.rmtree(hidden)
        else:
            hidden.unlink(missing_ok=True)
    expected = by_torchvision(root)
    if entries is None:
        assert expected is None or not expected[1]
        return
    assert expected is not None
    classes, samples = expected
    assert source.names == classes
    assert sorted(map(tuple, entries)) == sorted(samples)


@fuzz(60)
@given(tree=TREES)
def test_a_folder_has_all_visible_images(folder, tree):
    root = folder / "images"
    plant(tree, root)
    entries = outcome(lambda: ImageDirectory(str(root)).entries)
    visible = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.suffix.lower() in (".png", ".jpg", ".webp")
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    assert sorted(entry.path for entry in entries or []) == sorted(visible)
