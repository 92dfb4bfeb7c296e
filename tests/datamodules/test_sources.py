"""Sources of images: lists, folders, Hugging Face datasets."""

import os
from pathlib import Path

import pytest
from helpers import layouts

from diffguard_pl import InputError
from diffguard_pl.datamodules import ClassFolders, HuggingFaceImages, ImageDirectory, ImageList


@pytest.fixture
def pictures(tmp_path) -> Path:
    layouts.save(tmp_path / "pictures", ["a.jpg", "b.png", "sub folder/c d.jpg"])
    return tmp_path / "pictures"


def test_an_image_list_of_openood_is_read(pictures):
    (pictures / "list.txt").write_text(
        "\ufeff# a comment\n\na.jpg 7\nb.png -1\n"
        "sub folder/c d.jpg   {'label': 5, 'sub': [1, 2]}\n",
        encoding="utf-8",
    )
    source = ImageList(str(pictures / "list.txt"), str(pictures))
    assert [tuple(entry) for entry in source.entries] == [
        ("a.jpg", 7),
        ("b.png", -1),
        ("sub folder/c d.jpg", 5),
    ]
    data = layouts.prepared(source)
    assert [data[i]["label"] for i in range(3)] == [7, -1, 5]
    assert all(data[i]["image"].shape == (3, 32, 32) for i in range(3))
    assert data[2]["path"] == "sub folder/c d.jpg"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a.jpg", r"line 2: must be 'path label'"),
        ("a.jpg {'sub': 1}", r"line 2: must be a dictionary with .*'label'"),
        ("a.jpg {'label': __import__('os')}", r"line 2: must be a dictionary"),
        ("/etc/passwd 0", r"line 2: '/etc/passwd' leads out of the root"),
        ("../secret.jpg 0", r"line 2: '../secret.jpg' leads out"),
        ("sub folder/../../secret.jpg 0", r"leads out"),
        ("C:\\secret.jpg 0", r"leads out"),
    ],
)
def test_an_invalid_line_of_an_image_list_is_named(line, said, pictures):
    (pictures / "list.txt").write_text(f"b.png 1\n{line}\n")
    with pytest.raises(InputError, match=said):
        len(ImageList(str(pictures / "list.txt"), str(pictures)))


def test_labels_may_be_json_and_names_may_contain_line_separators(pictures):
    (pictures / "x\u0085y.jpg").write_bytes((pictures / "a.jpg").read_bytes())
    (pictures / "list.txt").write_text(
        'a.jpg {"label": 3, "x": null, "y": true}\r\nx\u0085y.jpg 4\n', encoding="utf-8"
    )
    assert [
        entry.label for entry in ImageList(str(pictures / "list.txt"), str(pictures)).entries
    ] == [3, 4]
    (pictures / "list.txt").write_text("a.jpg 99999999999999999999\n")
    with pytest.raises(InputError, match="line 1"):
        len(ImageList(str(pictures / "list.txt"), str(pictures)))


def test_a_link_out_of_the_root_is_an_unreadable_image(pictures, tmp_path):
    layouts.save(tmp_path / "elsewhere", ["secret.jpg"])
    os.symlink(tmp_path / "elsewhere" / "secret.jpg", pictures / "link.jpg")
    os.symlink(pictures / "a.jpg", pictures / "inside.jpg")
    data = layouts.prepared(ImageDirectory(str(pictures)))
    errors = {data[i]["path"]: data[i].get("error") for i in range(len(data))}
    assert "leads out" in errors.pop("link.jpg")
    assert set(errors.values()) == {None}
    assert len(errors) == 4
    trusting = layouts.prepared(ImageDirectory(str(pictures), follow_links=True))
    assert all("image" in trusting[i] for i in range(5))


def test_a_linked_folder_is_an_error_unless_it_is_allowed(pictures, tmp_path):
    layouts.save(tmp_path / "elsewhere", ["x.jpg", "y.jpg"])
    os.symlink(tmp_path / "elsewhere", pictures / "linked")
    os.symlink(pictures, pictures / "circle")
    with pytest.raises(InputError, match=r"pictures/linked: is a link.*follow_links"):
        len(ImageDirectory(str(pictures)))
    assert len(ImageDirectory(str(pictures), follow_links=True)) == 5


def test_class_folders_are_numbered_as_in_torchvision_or_as_given(tmp_path):
    from torchvision.datasets import ImageFolder

    layouts.save(tmp_path, ["dog/1.jpg", "cat/deep/2.jpg", "ant/3.png"])
    source = ClassFolders(str(tmp_path))
    theirs = ImageFolder(str(tmp_path))
    assert [(str(tmp_path / entry.path), entry.label) for entry in source.entries] == theirs.samples
    assert [
        entry.label for entry in ClassFolders(str(tmp_path), classes=["dog", "cat"]).entries
    ] == [1, 0]
    with pytest.raises(InputError, match="no images in bee"):
        len(ClassFolders(str(tmp_path), classes=["dog", "bee"]))


def test_hidden_files_and_folders_are_ignored(tmp_path):
    layouts.save(
        tmp_path,
        ["cat/1.jpg", "dog/2.jpg", ".ipynb_checkpoints/3.png", "cat/.hidden.png", "cat/._1.jpg"],
    )
    assert [tuple(entry) for entry in ClassFolders(str(tmp_path)).entries] == [
        ("cat/1.jpg", 0),
        ("dog/2.jpg", 1),
    ]
    assert len(ImageDirectory(str(tmp_path))) == 2


def test_a_hugging_face_dataset_may_have_a_damaged_image(tmp_path):
    datasets = pytest.importorskip("datasets")
    layouts.save(tmp_path, ["0.jpg", "1.jpg", "2.jpg"])
    (tmp_path / "1.jpg").write_bytes(b"not an image")
    columns = {"picture": [str(tmp_path / f"{i}.jpg") for i in range(3)], "class": [4, 5, 6]}
    table = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "saved")
    data = layouts.prepared(
        HuggingFaceImages(str(tmp_path / "saved"), image="picture", label="class")
    )
    assert [data[i]["label"] for i in (0, 2)] == [4, 6]
    assert data[0]["image"].shape == (3, 32, 32)
    assert "not an image" in data[1]["error"]
    with pytest.raises(
        InputError, match=r"saved, split test: unknown column 'image'; choose from: "
    ):
        len(HuggingFaceImages(str(tmp_path / "saved")))
