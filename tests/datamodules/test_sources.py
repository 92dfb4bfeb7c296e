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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a.jpg 7\r\n".encode("utf-16"), "UTF-16.*save it as UTF-8"),
        ("a.jpg 7\r\n".encode("utf-16-be"), "UTF-16.*save it as UTF-8"),
        ("a.jpg 7\r\n".encode("utf-32"), "UTF-16 or not text"),
        ("a.jpg 7\nä.jpg 3\n".encode("latin-1"), "line 2: is not UTF-8; save"),
        (b"a.jpg 7\nsub folder\\c d.jpg 3\n", "line 2: .* not found; write / between folders"),
    ],
)
def test_a_list_as_windows_writes_it_is_refused_with_the_remedy(content, said, pictures):
    (pictures / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        len(ImageList(str(pictures / "list.txt"), str(pictures)))


def test_a_file_name_may_contain_a_backslash(pictures):
    (pictures / "a\\b.jpg").write_bytes((pictures / "a.jpg").read_bytes())
    (pictures / "list.txt").write_text("a\\b.jpg 7\n")
    assert "image" in layouts.prepared(ImageList(str(pictures / "list.txt"), str(pictures)))[0]


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
    with pytest.raises(InputError, match="'dog' is in it twice"):
        ClassFolders(str(tmp_path), classes=["dog", "cat", "dog"])


def test_an_empty_class_folder_is_refused_as_it_would_shift_labels(tmp_path):
    layouts.save(tmp_path, ["ant/1.jpg", "cat/2.jpg", "dog/3.jpg"], side=20)
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"no images in bee.*class 1; remove .*classes"):
        len(ClassFolders(str(tmp_path)))
    given = ClassFolders(str(tmp_path), classes=["ant", "bee", "cat", "dog"])
    assert [entry.label for entry in given.entries] == [0, 2, 3]


def test_with_given_classes_some_may_have_no_folder(tmp_path, recwarn):
    layouts.save(tmp_path, ["cat/2.jpg"], side=20)
    source = ClassFolders(str(tmp_path), classes=["ant", "bee", "cat"])
    assert [tuple(entry) for entry in source.entries] == [("cat/2.jpg", 2)]
    assert source.names == ["ant", "bee", "cat"]
    assert not recwarn
    with pytest.raises(InputError, match="no images in any folder of a class; check root"):
        len(ClassFolders(str(tmp_path), classes=["ant", "bee"]))


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["0", "1", "2", "10"], r"10 is class 2 and 2 is class 3; .*set classes"),
        (["class_9", "class_10"], r"class_10 is class 0 and class_9 is class 1"),
        (["val/ant", "val/bee"], r"val is the only class.*set root to .*/val"),
        (["train", "val"], r"train, val .*splits; set root to one"),
    ],
)
def test_folders_that_are_hardly_the_classes_are_warned_of(folders, said, tmp_path):
    layouts.save(tmp_path, [f"{folder}/1.jpg" for folder in folders], side=20)
    with pytest.warns(UserWarning, match=said):
        len(ClassFolders(str(tmp_path)))


def test_images_in_no_folder_of_a_class_are_warned_of(tmp_path):
    layouts.save(tmp_path, ["cat/1.jpg", "dog/2.jpg", "dog/3.jpg"], side=20)
    misspelt = r"2 images .*such as dog/2.jpg, while class dgo has no images; check the names"
    with pytest.warns(UserWarning, match=misspelt):
        assert len(ClassFolders(str(tmp_path), classes=["cat", "dgo"])) == 1
    layouts.save(tmp_path, ["beside.jpg"], side=20)
    with pytest.warns(UserWarning, match=r"1 images .*such as beside.jpg; check"):
        assert len(ClassFolders(str(tmp_path))) == 3


@pytest.mark.parametrize(
    "folders", [["00", "01", "10"], ["0", "1"], ["n02", "n10"], ["a9", "b10"], ["cat/a", "cat"]]
)
def test_ordinary_class_folders_are_not_warned_of(folders, tmp_path, recwarn):
    layouts.save(tmp_path, [f"{folder}/1.jpg" for folder in folders], side=20)
    len(ClassFolders(str(tmp_path)))
    assert not recwarn


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


@pytest.fixture
def saved_dataset(tmp_path):
    """Saves a Hugging Face dataset of given images and labels; returns its folder."""
    datasets = pytest.importorskip("datasets")
    layouts.save(tmp_path, ["a.jpg"], side=20)

    def save(images, labels, split=None, split_of_table=None) -> str:
        paths = [str(tmp_path / "a.jpg") if image == "a" else image for image in images]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        columns = {"image": paths, "label": labels}
        table = datasets.Dataset.from_dict(columns, features, split=split_of_table)
        whole = table if split is None else datasets.DatasetDict({split: table})
        whole.save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")

    return save


def test_rows_of_a_hugging_face_dataset_may_lack_an_image_or_a_label(saved_dataset):
    empty = {"bytes": b"", "path": None}
    folder = saved_dataset(["a", None, empty, "a"], [3, 3, 3, None], split="test")
    source = HuggingFaceImages(folder, label="label")
    data = layouts.prepared(source)
    assert data[0]["label"] == 3
    for i in (1, 2):
        assert f"'image' has no image in row {i}; remove the row" in data[i]["error"]
    assert "label 'None' is not a class number; use -1" in data[3]["error"]
    # labels of out-of-distribution images do not matter
    assert "image" in layouts.prepared(source, in_distribution=False)[3]


def test_a_wrong_split_of_a_hugging_face_dataset_is_named_with_the_others(saved_dataset):
    folder = saved_dataset(["a"], [3], split="validation")
    with pytest.raises(
        InputError, match=r"saved, split test: unknown split 'test'; choose from: validation"
    ):
        len(HuggingFaceImages(folder))
    with pytest.raises(InputError, match=r"split 'tset'; choose from: validation"):
        len(HuggingFaceImages(folder, split="tset"))


def test_a_single_hugging_face_dataset_has_no_splits(saved_dataset):
    folder = saved_dataset(["a"], [3], split_of_table="train")
    assert len(HuggingFaceImages(folder)) == 1
    assert len(HuggingFaceImages(folder, split="train")) == 1
    with pytest.raises(InputError, match=r"single dataset \(split train\).*remove split"):
        len(HuggingFaceImages(folder, split="test"))


def test_a_hugging_face_dataset_without_rows_is_refused(saved_dataset):
    with pytest.raises(InputError, match="has no images; choose another split"):
        len(HuggingFaceImages(saved_dataset([], [], split="test")))
