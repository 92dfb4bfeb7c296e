"""Data: where images come from, how they are read, what happens to those that cannot be."""

import csv
import http.server
import os
import re
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import layouts
from helpers.results import scores_of
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms as v1
from torchvision.datasets import FakeData

import diffguard_pl
from diffguard_pl import DiffGuardModule, InputError
from diffguard_pl.commands import data as data_command
from diffguard_pl.commands.evaluate import main
from diffguard_pl.config import load_data
from diffguard_pl.datamodules import (
    CIFAROODDataModule,
    ClassFolders,
    HuggingFaceImages,
    ImageDirectory,
    ImageList,
    ImageNetOODDataModule,
    OODDataModule,
    presence,
)
from diffguard_pl.datamodules.openood import CIFAR, IMAGENET
from diffguard_pl.datamodules.reading import Prepared, read_image, standard_transform


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return layouts.cifar(layouts.imagenet(tmp_path_factory.mktemp("data")))


@pytest.fixture
def pictures(tmp_path) -> Path:
    layouts.save(tmp_path / "pictures", ["a.jpg", "b.png", "sub folder/c d.jpg"])
    return tmp_path / "pictures"


def prepared(source: Dataset, in_distribution: bool = True) -> Prepared:
    return Prepared(source, standard_transform(36, 32), "mine", in_distribution)


# --------------------------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize(
    ("resize", "size", "interpolation"),
    [(256, 224, "bilinear"), (256, 256, "bilinear"), (40, 32, "bicubic")],
)
def test_transforms_equal_the_original_s_pixel_for_pixel(resize, size, interpolation):
    original = v1.Compose(
        [
            v1.Resize(resize, v1.InterpolationMode(interpolation)),
            v1.CenterCrop(size),
            v1.ToTensor(),
        ],
    )
    for picture in layouts.photographs():
        ours = standard_transform(resize, size, interpolation)(picture)
        assert ours.shape == (3, size, size)
        assert torch.equal(ours, original(picture))


# ------------------------------------------------------------------------------------------------------------------ reading


def stored(picture: Image.Image, format_: str, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA", "CMYK", "1"])
def test_every_mode_is_read_as_pil_reads_it(mode):
    content = stored(
        layouts.photographs()[4].convert(mode), "TIFF" if mode in ("CMYK", "LA") else "PNG"
    )
    image = read_image(content)
    assert image.mode == "RGB"
    assert np.array_equal(
        np.asarray(image), np.asarray(Image.open(BytesIO(content)).convert("RGB"))
    )


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(format_):
    grey = np.asarray(layouts.photographs()[4].convert("L"))
    content = stored(Image.fromarray(grey.astype(np.uint16) * 257), format_)
    assert np.array_equal(np.asarray(read_image(content))[..., 0], grey)


def test_orientation_is_ignored_as_by_imagefolder_unless_asked_for():
    picture = layouts.photographs()[2].crop((0, 0, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = stored(picture, "JPEG", exif=exif)
    assert read_image(content).size == (60, 40)
    assert read_image(content, upright=True).size == (40, 60)


def broken_files(folder: Path) -> dict[str, str]:
    """Files that are no images, and what is to be said of each."""
    picture = layouts.photographs()[3]
    bomb = b"P6 30000 30000 255\n" + bytes(100)
    floats = BytesIO()
    np.save(floats, np.zeros(3))
    contents = {
        "truncated.jpg": (stored(picture, "JPEG")[:9000], "truncated"),
        "truncated.png": (stored(picture, "PNG")[:9000], "truncated|broken|Truncated"),
        "text.jpg": (b"<html>404</html>", "not an image that Pillow can read"),
        "empty.png": (b"", "not an image that Pillow can read"),
        "bomb.ppm": (bomb, "too many pixels: .*900000000"),
        "array.png": (floats.getvalue(), "not an image that Pillow can read"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: said for name, (_, said) in contents.items()}


def test_a_file_that_cannot_be_read_is_an_item_with_the_reason(tmp_path):
    files = broken_files(tmp_path)
    (tmp_path / "list.txt").write_text("".join(f"{name} 3\n" for name in [*files, "missing.jpg"]))
    data = prepared(ImageList(str(tmp_path / "list.txt"), str(tmp_path)))
    for i, (name, said) in enumerate((files | {"missing.jpg": "file not found"}).items()):
        item = data[i]
        assert "image" not in item
        assert (item["index"], item["path"]) == (i, name)
        assert re.search(said, item["error"]), item["error"]
        assert "\n" not in item["error"]


def test_no_program_is_run_for_an_image_and_no_pipe_is_waited_for(tmp_path, monkeypatch):
    """Pillow would have an EPS file drawn by Ghostscript, whatever it is called."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    content = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "photo.png").write_text(content)
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in {"photo.png": "cannot identify", "pipe.png": "regular file"}.items():
        with pytest.raises(OSError, match=said):
            read_image(tmp_path / name)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------------------------ sources


def test_an_image_list_as_openood_writes_them(pictures):
    (pictures / "list.txt").write_text(
        "\ufeff# a comment\n\na.jpg 7\nb.png -1\nsub folder/c d.jpg   {'label': 5, 'sub': [1, 2]}\n",
        encoding="utf-8",
    )
    source = ImageList(str(pictures / "list.txt"), str(pictures))
    assert [tuple(entry) for entry in source.entries] == [
        ("a.jpg", 7),
        ("b.png", -1),
        ("sub folder/c d.jpg", 5),
    ]
    data = prepared(source)
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
def test_a_line_that_is_wrong_or_leads_out_of_the_root_is_refused(line, said, pictures):
    (pictures / "list.txt").write_text(f"b.png 1\n{line}\n")
    with pytest.raises(InputError, match=said):
        len(ImageList(str(pictures / "list.txt"), str(pictures)))


def test_links_that_lead_out_of_the_root_are_refused(pictures, tmp_path):
    layouts.save(tmp_path / "elsewhere", ["secret.jpg"])
    os.symlink(tmp_path / "elsewhere" / "secret.jpg", pictures / "link.jpg")
    os.symlink(pictures / "a.jpg", pictures / "inside.jpg")
    data = prepared(ImageDirectory(str(pictures)))
    errors = {data[i]["path"]: data[i].get("error") for i in range(len(data))}
    assert "leads out" in errors.pop("link.jpg")
    assert set(errors.values()) == {None}
    assert len(errors) == 4
    trusting = prepared(ImageDirectory(str(pictures), follow_links=True))
    assert all("image" in trusting[i] for i in range(5))


def test_a_linked_folder_is_refused_as_a_whole_and_can_be_allowed(pictures, tmp_path):
    layouts.save(tmp_path / "elsewhere", ["x.jpg", "y.jpg"])
    os.symlink(tmp_path / "elsewhere", pictures / "linked")
    os.symlink(pictures, pictures / "circle")
    with pytest.raises(InputError, match=r"pictures/linked: is a link.*follow_links"):
        len(ImageDirectory(str(pictures)))
    assert len(ImageDirectory(str(pictures), follow_links=True)) == 5


def test_class_folders_are_numbered_as_torchvision_does_or_as_told(tmp_path):
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


def test_a_hugging_face_data_set_with_a_broken_image(tmp_path):
    datasets = pytest.importorskip("datasets")
    layouts.save(tmp_path, ["0.jpg", "1.jpg", "2.jpg"])
    (tmp_path / "1.jpg").write_bytes(b"not an image")
    columns = {"picture": [str(tmp_path / f"{i}.jpg") for i in range(3)], "class": [4, 5, 6]}
    table = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "saved")
    data = prepared(HuggingFaceImages(str(tmp_path / "saved"), image="picture", label="class"))
    assert [data[i]["label"] for i in (0, 2)] == [4, 6]
    assert data[0]["image"].shape == (3, 32, 32)
    assert "not an image" in data[1]["error"]
    with pytest.raises(
        InputError, match=r"saved, split test: unknown column 'image'; choose from: "
    ):
        len(HuggingFaceImages(str(tmp_path / "saved")))


class Tensors(Dataset):
    """Tensors in [0, 1]; the second has a NaN, the third leaves the range, the fourth raises."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        if index == 3:
            raise RuntimeError("the database\nis gone")
        image = torch.full((3, 40, 40), 0.5)
        image[0, 20, 20] = [0.5, float("nan"), 7.0][index]
        return {"image": image, "label": 1}


def test_a_data_set_of_ones_own_with_mishaps():
    data = prepared(Tensors())
    assert data[0]["image"].shape == (3, 32, 32)
    errors = [data[i]["error"] for i in (1, 2, 3)]
    assert "NaN" in errors[0]
    assert "must be in [0, 1]" in errors[1]
    assert errors[2] == "the database is gone"
    assert data[0]["path"] == "mine[0]"


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_tensors_of_any_kind(channels, dtype):
    image = (
        torch.full((channels, 40, 40), 1.0).mul(0.5 if dtype.is_floating_point else 128).to(dtype)
    )
    item = prepared([(image, 2)])[0]
    if channels == 4:
        assert "[4, 40, 40]; must be [3, H, W]" in item["error"]
    else:
        assert torch.allclose(item["image"], torch.full((3, 32, 32), 0.5), atol=0.01)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_pil_images_of_any_mode_from_a_data_set_of_ones_own(mode):
    picture = layouts.photographs()[4].convert("L")
    picture = (
        Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        if mode == "I;16"
        else picture.convert(mode)
    )
    item = prepared([picture])[0]
    assert item["image"].shape == (3, 32, 32)
    assert 0.2 < item["image"].mean() < 0.8
    assert item["label"] == -1


def test_labels_of_out_of_distribution_sets_are_hidden(pictures):
    (pictures / "list.txt").write_text("a.jpg 7\n")
    assert (
        prepared(ImageList(str(pictures / "list.txt"), str(pictures)), in_distribution=False)[0][
            "label"
        ]
        == -1
    )


# ------------------------------------------------------------------------------------------------------------- data modules


@pytest.mark.parametrize("benchmark", list(IMAGENET))
def test_imagenet_benchmarks_in_openood_s_layout(benchmark, root):
    data = ImageNetOODDataModule(str(root), benchmark, num_workers=0)
    sets = data.datasets()
    assert list(sets) == [
        "imagenet",
        *[name for group in IMAGENET[benchmark].values() for name in group],
    ]
    assert {name: data.groups[name] for name in list(sets)[1:]} == {
        n: g for g, s in IMAGENET[benchmark].items() for n in s
    }
    for name, loader in data.test_dataloader().items():
        (batch,) = list(loader)
        assert batch["image"].shape == (4, 3, 224, 224), name
        assert batch["unreadable"] == []
        assert batch["label"].tolist() == ([0, 1, 2, 3] if name == "imagenet" else [-1] * 4)
        assert batch["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("benchmark", list(CIFAR))
def test_cifar_benchmarks_in_openood_s_layout(benchmark, root):
    data = CIFAROODDataModule(str(root), benchmark, num_workers=0, limit=2, only=["tin", "svhn"])
    loaders = data.test_dataloader()
    assert list(loaders) == [benchmark, "tin", "svhn"]
    assert data.groups == {"tin": "near", "svhn": "far"}
    (batch,) = list(loaders["svhn"])
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["path"] == ["svhn/test/0000.png", "svhn/test/0002.png"]


def test_imagenet_beside_the_folders_of_images_as_diffguard_s_readme_has_it(tmp_path):
    layouts.imagenet(tmp_path)
    (tmp_path / "images_largescale" / "imagenet_1k").rename(tmp_path / "imagenet_1k")
    data = ImageNetOODDataModule(str(tmp_path), num_workers=0)
    assert "image" in data.datasets()["imagenet"][0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ind": {}}, "data.ind: must be one in-distribution dataset"),
        ({"ood": {}}, "data.ood: .*at least one out-of-distribution"),
        (
            {"ood": {"near": {"a": Tensors()}, "far": {"a": Tensors()}}},
            "data.ood: .*'a' must be unique",
        ),
        ({"limit": 0}, "limit=0: must be at least 1"),
        ({"only": ["c"]}, "unknown data.only 'c'; choose from: a, b"),
        ({"on_error": "cry"}, "unknown data.on_error 'cry'; choose from: record, raise"),
        ({"resize": 200}, "resize=200: must be at least image_size=224"),
        (
            {"interpolation": "cubic"},
            "unknown interpolation 'cubic'; choose from: bilinear, bicubic",
        ),
    ],
)
def test_settings_that_cannot_be(settings, said):
    given = {"ind": {"mine": Tensors()}, "ood": {"near": {"a": Tensors()}, "far": {"b": Tensors()}}}
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        OODDataModule(**(given | settings))


CONFIG = """
base: digits_ldm
model:
  steps: 2
  discrepancies: [l2]
data:
  class_path: OODDataModule
  init_args:
    image_size: 16
    resize: null
    batch_size: 4
    num_workers: 2
    ind:
      mine: {class_path: ImageList, init_args: {file: FOLDER/list.txt, root: FOLDER}}
    ood:
      near:
        folder: {class_path: ImageDirectory, init_args: {root: FOLDER}}
      strange:
        noise: {class_path: torchvision.datasets.FakeData, init_args: {size: 5, image_size: [3, 20, 20]}}
        broken: {class_path: ImageDirectory, init_args: {root: FOLDER/broken}}
"""


@pytest.fixture
def config(tmp_path) -> Path:
    folder = tmp_path / "images"
    layouts.save(folder, [f"{i}.jpg" for i in range(6)])
    (folder / "broken").mkdir()
    broken_files(folder / "broken")
    (folder / "list.txt").write_text("".join(f"{i}.jpg {i}\n" for i in range(6)) + "gone.jpg 1\n")
    (tmp_path / "mine.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    return tmp_path / "mine.yaml"


def run(monkeypatch, *args: str) -> None:
    monkeypatch.setattr("sys.argv", ["diffguard-test", *args])
    main()


def test_broken_images_are_recorded_counted_and_left_out_and_the_exit_says_so(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exit_:
        run(
            monkeypatch,
            "--config",
            str(config),
            "--trainer.default_root_dir",
            str(tmp_path / "run"),
        )
    assert exit_.value.code == 3
    said = capsys.readouterr()
    assert "13 images could not be used; see the column error of the scores" in said.err
    assert "6 images of mine, 1 left out" in " ".join(said.out.split())
    assert "6 left out" in said.out
    rows = scores_of(tmp_path / "run")
    assert len(rows) == 7 + 12 + 5 + 6
    assert [row["index"] for row in rows if row["dataset"] == "mine"] == list(range(7))
    for row in rows:
        assert (row["error"] is None) == (row["l2"] is not None)
    assert {row["group"] for row in rows} == {"ind", "near", "strange"}
    (gone,) = [row for row in rows if row["path"] == "gone.jpg"]
    assert (gone["dataset"], gone["label"], gone["error"]) == ("mine", 1, "file not found")
    metrics = {
        row["dataset"]: row["auroc"]
        for row in csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    }
    assert metrics["broken"] == "nan"  # nothing of it could be read
    assert 0 <= float(metrics["folder"]) <= 1


def test_on_error_raise_ends_the_run_with_the_file_s_name(config, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"error: mine image 6 gone.jpg: file not found"):
        run(
            monkeypatch,
            "--config",
            str(config),
            "--data.on_error",
            "raise",
            "--trainer.default_root_dir",
            str(tmp_path / "run"),
        )
    assert len(scores_of(tmp_path / "run")) == 4  # the batch before


def test_plain_pairs_get_an_index_of_their_own_and_unlabelled_images_no_accuracy(tmp_path):
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader

    from diffguard_pl.callbacks import MetricsTable, ScoreWriter

    detector = diffguard_pl.load("digits_ldm", steps=2, discrepancies=["l2"])
    pairs = [(image, -1) for image in torch.rand(5, 3, 16, 16)]
    settings = {
        "classifier": detector.classifier,
        "backbone": detector.backbone,
        "guidance": detector.guidance,
        "steps": 2,
    }
    module = DiffGuardModule(discrepancies=["l2"], **settings)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    callbacks = [ScoreWriter(), MetricsTable()]
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, default_root_dir=tmp_path, **quiet
    )
    trainer.test(
        module, {"mine": DataLoader(pairs, 2), "other": DataLoader(pairs, 2)}, verbose=False
    )
    rows = scores_of(tmp_path)
    assert [row["index"] for row in rows] == [*range(5), *range(5)]
    assert module.ind_accuracy != module.ind_accuracy


# ------------------------------------------------------------------------------------------------------------------ command


def test_check_says_that_all_is_there(root, capsys):
    data_command.main(["check", "gdm", "--data.root", str(root)])
    said = capsys.readouterr().out
    for name in ("imagenet", "species", "inaturalist", "openimage_o", "imagenet_o"):
        assert name in said
    assert "get it" not in said


def test_check_names_what_is_missing_and_where_to_get_it(tmp_path, capsys):
    layouts.imagenet(tmp_path)
    for name in layouts.names_of("species_sub", 4):
        (tmp_path / "images_largescale" / name).unlink()
    (tmp_path / "benchmark_imglist" / "imagenet" / "test_imagenet_o.txt").unlink()
    with pytest.raises(SystemExit) as exit_:
        data_command.main(["check", "ldm", "--data.root", str(tmp_path)])
    assert exit_.value.code == 1
    said = capsys.readouterr().out
    assert (
        "species: missing "
        + str(tmp_path / "images_largescale" / "species_sub" / "protists" / "00000 (copy).jpg")
        in said
    )
    assert "and 1 more" in said
    assert "diffguard-pl data prepare ldm" in said
    assert "https://drive.google.com/file/d/1-JCxDx__iFMExkYRMylnGJYTPvyuX6aq/view" in said
    assert "imagenet_o: image list" in said


def test_check_of_sets_of_ones_own(config, capsys):
    with pytest.raises(SystemExit):
        data_command.main(["check", str(config)])
    said = capsys.readouterr().out
    assert "gone.jpg" in said
    assert "noise" in said
    with pytest.raises(SystemExit, match="OpenOOD publishes none"):
        data_command.main(["prepare", str(config)])


def test_check_of_images_to_calibrate_and_to_fit_on_is_asked_for(root, config, tmp_path, capsys):
    data_command.main(["check", "gdm", "--calibration", "--data.root", str(root)])
    said = capsys.readouterr().out
    assert "data.calibration" in said
    assert "data.train" not in said

    layouts.imagenet(tmp_path)
    for name in (
        (tmp_path / "benchmark_imglist" / "imagenet" / "train_imagenet.txt")
        .read_text()
        .splitlines()
    ):
        (tmp_path / "images_largescale" / name.split()[0]).unlink()
    with pytest.raises(SystemExit):
        data_command.main(["check", "gdm", "--train", "--data.root", str(tmp_path)])
    said = capsys.readouterr().out
    assert "data.train: missing" in said
    assert (
        f"get it from https://image-net.org -> {tmp_path / 'images_largescale' / 'imagenet_1k'}"
        in said
    )
    with pytest.raises(
        SystemExit,
        match=r"--train: data.train is not set.*source of training images",
    ):
        data_command.main(["check", str(config), "--train"])


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A server with OpenOOD's archives; yields what was asked of it."""
    from diffguard_pl.datamodules.openood import IMAGE_LISTS, PUBLISHED

    whole = layouts.imagenet(tmp_path / "whole")
    served, asked = tmp_path / "served", []
    served.mkdir()
    for drive_id, folder in [
        (IMAGE_LISTS.drive, "."),
        *[(p.drive, p.folder) for p in PUBLISHED.values()],
    ]:
        if (whole / folder).is_dir():
            with zipfile.ZipFile(served / drive_id, "w") as archive:
                for file in sorted(
                    (whole / folder / ("benchmark_imglist" if folder == "." else "")).rglob("*.*")
                ):
                    archive.write(file, file.relative_to(whole / folder))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(served))

        def do_GET(self) -> None:
            asked.append(self.path.lstrip("/"))
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        presence,
        "google_drive",
        lambda drive_id: f"http://127.0.0.1:{server.server_port}/{drive_id}",
    )
    yield asked
    server.shutdown()
    server.server_close()


def test_prepare_downloads_what_is_missing_and_nothing_else(drive, tmp_path, capsys):
    from diffguard_pl.datamodules.openood import IMAGE_LISTS, PUBLISHED

    target = tmp_path / "data"
    data_command.main(["prepare", "gdm", "--data.root", str(target)])
    wanted = [
        PUBLISHED[name].drive
        for name in ("imagenet_1k", "species_sub", "inaturalist", "openimage_o", "imagenet_o")
    ]
    assert sorted(set(drive)) == sorted([IMAGE_LISTS.drive, *wanted])
    assert "get it" not in capsys.readouterr().out
    assert not list(target.rglob("*.zip"))
    hashes = (target / "downloads.sha256").read_text().splitlines()
    assert len(hashes) == 6
    data = load_data(["gdm"], [f"--data.root={target}", "--data.num_workers=0"])
    assert "image" in data.datasets()["species"][0]

    drive.clear()
    (target / "images_largescale" / "ninco").mkdir()
    (target / "images_largescale" / layouts.names_of("species_sub", 1)[0]).unlink()
    data_command.main(["prepare", "gdm", "--data.root", str(target)])
    assert set(drive) == {PUBLISHED["species_sub"].drive}

    drive.clear()
    (target / "images_largescale" / training_image(target)).unlink()
    with pytest.raises(SystemExit):  # OpenOOD does not publish it
        data_command.main(["prepare", "gdm", "--train", "--data.root", str(target)])
    assert not drive


def training_image(root: Path) -> str:
    """The first one of OpenOOD's list."""
    return (root / "benchmark_imglist" / "imagenet" / "train_imagenet.txt").read_text().split()[0]


def test_prepare_refuses_an_archive_that_is_not_what_it_was(drive, tmp_path):
    target = tmp_path / "data"
    target.mkdir()
    (target / "downloads.sha256").write_text(f"{'0' * 64}  benchmark_imglist.zip\n")
    with pytest.raises(SystemExit, match=r"error: .*0000"):
        data_command.main(["prepare", "gdm", "--data.root", str(target)])


# ------------------------------------------------------------------------------------------------ what reviewers broke


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--data.only", "[nothing]"],
            r"unknown data.only 'nothing'; choose from: folder, noise, broken$",
        ),
        (["--data.limit", "0"], r"data.limit=0: must be at least 1"),
        (
            ["--data.batch_size", "0"],
            r"data.batch_size=0, num_workers=2: must be at least 1 and 0",
        ),
        (["--data.on_error", "skip"], r"unknown data.on_error 'skip'; choose from: record, raise$"),
        (["--trajectory.every", "0"], r"trajectory.count=0, every=0: must be at least"),
        (["--config"], r"--config: needs a config; choose from"),
        (["--base", "gdm"], r"--base: .*repeat --config"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_of_the_command(
    args, said, config, tmp_path, monkeypatch
):
    with pytest.raises(SystemExit) as exit_:
        run(
            monkeypatch,
            "--config",
            str(config),
            "--trainer.default_root_dir",
            str(tmp_path / "run"),
            *args,
        )
    assert isinstance(exit_.value.code, str)
    assert "\n" not in exit_.value.code
    assert re.search(said, exit_.value.code)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["gdm", "--data.only", "[specis]"], r"unknown data.only 'specis'; choose from: species, "),
        (["gdm", "--data.rot", "/x"], r"unknown setting rot; did you mean root\?"),
        (["gdm", "--data.limit", "abc"], r"data.limit: Expected a <class 'int'>"),
        (["gmd"], r"unknown config 'gmd'"),
        (
            ["gdm", "--data", "OODDataModul"],
            r"unknown class for data OODDataModul; did you mean OODDataModule\?",
        ),
        (["small/gdm"], r"config small/gdm: "),
    ],
)
def test_a_mistake_in_check_is_one_line(args, said):
    with pytest.raises(SystemExit) as exit_:
        data_command.main(["check", *args])
    assert "\n" not in exit_.value.code
    assert re.search(said, exit_.value.code)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            "ImageDirectory",
            "ImageDirectry",
            "unknown source of images ImageDirectry; did you mean ImageDirectory? choose from: ClassFolders",
        ),
        (
            "root:",
            "rooot:",
            "unknown setting rooot; did you mean root? choose from: follow_links, root, upright",
        ),
        ("ood:", "oodd:", "unknown setting oodd; did you mean ood? choose from: batch_size, "),
    ],
)
def test_a_mistake_within_a_source_is_named_as_what_it_is(
    right, wrong, said, tmp_path, monkeypatch, capsys
):
    text = """
base: digits_ldm
data:
  class_path: OODDataModule
  init_args:
    image_size: 16
    ind: {a: {class_path: ImageDirectory, init_args: {root: images}}}
    ood: {near: {b: {class_path: ImageDirectory, init_args: {root: images}}}}
"""
    (tmp_path / "mine.yaml").write_text(text[::-1].replace(right[::-1], wrong[::-1], 1)[::-1])
    with pytest.raises(InputError, match=re.escape(said)):
        load_data([str(tmp_path / "mine.yaml")])
    with pytest.raises(SystemExit):
        run(monkeypatch, "--config", str(tmp_path / "mine.yaml"))
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_one_name_will_do_for_only_and_overlays_are_heard(root, capsys):
    data_command.main(
        ["check", "gdm", "small/gdm", "--data.root", str(root), "--data.only", "species"]
    )
    assert "inaturalist" not in capsys.readouterr().out


def test_a_folder_with_results_is_never_written_to_again_and_a_saved_config_makes_its_own(
    config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--config", str(config), "--data.only", "noise", "--data.limit", "3")
    (first,) = (tmp_path / "runs" / "mine").iterdir()
    before = scores_of(first)
    run(monkeypatch, "--config", str(first / "config.yaml"), "--data.limit", "2")
    (again,) = (tmp_path / "runs" / "config").iterdir()
    assert len(scores_of(again)) == 4
    with pytest.raises(SystemExit, match=r"holds the results of another run"):
        run(monkeypatch, "--config", str(config), "--trainer.default_root_dir", str(first))
    assert scores_of(first) == before


def test_hidden_files_and_folders_are_no_images_and_no_classes(tmp_path):
    layouts.save(
        tmp_path,
        ["cat/1.jpg", "dog/2.jpg", ".ipynb_checkpoints/3.png", "cat/.hidden.png", "cat/._1.jpg"],
    )
    assert [tuple(entry) for entry in ClassFolders(str(tmp_path)).entries] == [
        ("cat/1.jpg", 0),
        ("dog/2.jpg", 1),
    ]
    assert len(ImageDirectory(str(tmp_path))) == 2


def test_a_file_name_that_is_not_unicode_can_be_written_down(tmp_path):
    layouts.save(tmp_path, ["a.png"])
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xe9t\xe9.png")
    item = prepared(ImageDirectory(str(tmp_path)))[0]
    assert item["image"].shape == (3, 32, 32)
    assert item["path"].encode() == b"\\udce9t\\udce9.png"


@pytest.mark.parametrize("label", ["cat", [0.0, 1.0], 1.5, None])
def test_a_label_that_is_no_class_number_matters_in_distribution_alone(label):
    data = [(layouts.photographs()[0], label)]
    assert "is not a class number" in prepared(data)[0]["error"]
    assert prepared(data, in_distribution=False)[0]["image"].shape == (3, 32, 32)


def test_labels_as_json_and_names_with_strange_line_ends(pictures):
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


def test_a_run_stops_after_an_in_distribution_set_of_which_nothing_could_be_used(
    config, tmp_path, monkeypatch
):
    (tmp_path / "images" / "list.txt").write_text("gone.jpg 1\ngone too.jpg 2\n")
    with pytest.raises(
        SystemExit,
        match=r"mine: none of its 2 images could be used; the first, gone.jpg: file not found",
    ):
        run(
            monkeypatch,
            "--config",
            str(config),
            "--trainer.default_root_dir",
            str(tmp_path / "run"),
        )


def test_a_set_of_fewer_images_than_devices(config, tmp_path):
    import subprocess
    import sys

    (tmp_path / "images" / "list.txt").write_text("0.jpg 1\n")
    command = [sys.executable, "-m", "diffguard_pl.test", "--config", str(config), "--data.only", "noise", "--data.limit", "3",
               "--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.default_root_dir", "run"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = scores_of(tmp_path / "run")
    assert [(row["dataset"], row["index"]) for row in rows] == [
        ("mine", 0),
        ("noise", 0),
        ("noise", 1),
        ("noise", 3),
    ]


def test_a_run_does_not_go_on_with_other_images(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [
        "--data.batch_size",
        "1",
        "--scores.every",
        "0",
        "--pictures.count",
        "0",
        "--page.enabled",
        "false",
    ]
    with pytest.raises(SystemExit):  # status 3, for the broken ones
        main(["--config", str(config), *small, "--trainer.default_root_dir", "run"])
    for part in sorted((tmp_path / "run" / "scores").glob("part-*"))[-9:]:
        part.unlink()
    layouts.save(tmp_path / "images", ["00.jpg"])
    with pytest.raises(
        SystemExit, match=r"images of folder have changed.*\(\d+ then, \d+ now\).*restore"
    ):
        main(["--resume", "run", *small])


@pytest.mark.parametrize(
    ("ood", "said"),
    [
        ({"near": {"a", "b"}, "far": {"near"}}, "a group of datasets"),
        ({"near": {"mean", "a"}}, "the mean over a group"),
    ],
)
def test_a_set_that_is_called_like_a_group_is_refused(ood, said, digits_ldm, tmp_path):
    settings = {
        "classifier": digits_ldm.classifier,
        "backbone": digits_ldm.backbone,
        "guidance": digits_ldm.guidance,
    }
    data = OODDataModule(
        {"mine": FakeData(1)},
        {group: {name: FakeData(1) for name in sets} for group, sets in ood.items()},
        16,
    )
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    with pytest.raises(InputError, match=f"has the name of {said}; rename"):
        trainer.test(
            DiffGuardModule(**settings, steps=5, discrepancies=["l2"]), data, verbose=False
        )
