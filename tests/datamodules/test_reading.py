"""Reading and preparing images."""

import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import layouts
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms as v1

from diffguard_pl.datamodules import ImageDirectory, ImageList
from diffguard_pl.datamodules.reading import read_image, standard_transform


@pytest.fixture
def pictures(tmp_path) -> Path:
    layouts.save(tmp_path / "pictures", ["a.jpg", "b.png", "sub folder/c d.jpg"])
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("resize", "size", "interpolation"),
    [(256, 224, "bilinear"), (256, 256, "bilinear"), (40, 32, "bicubic")],
)
def test_the_transform_equals_the_original_s_pixel_for_pixel(resize, size, interpolation):
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


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA", "CMYK", "1"])
def test_every_mode_is_read_as_pillow_reads_it(mode):
    content = layouts.encoded(
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
    content = layouts.encoded(Image.fromarray(grey.astype(np.uint16) * 257), format_)
    assert np.array_equal(np.asarray(read_image(content))[..., 0], grey)


def test_orientation_is_ignored_by_default():
    picture = layouts.photographs()[2].crop((0, 0, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = layouts.encoded(picture, "JPEG", exif=exif)
    assert read_image(content).size == (60, 40)
    assert read_image(content, upright=True).size == (40, 60)


def test_an_unreadable_file_is_an_item_with_the_reason(tmp_path):
    files = layouts.unreadable_files(tmp_path)
    (tmp_path / "list.txt").write_text("".join(f"{name} 3\n" for name in [*files, "missing.jpg"]))
    data = layouts.prepared(ImageList(str(tmp_path / "list.txt"), str(tmp_path)))
    for i, (name, said) in enumerate((files | {"missing.jpg": "file not found"}).items()):
        item = data[i]
        assert "image" not in item
        assert (item["index"], item["path"]) == (i, name)
        assert re.search(said, item["error"]), item["error"]
        assert "\n" not in item["error"]


def test_reading_runs_no_program_and_waits_for_no_pipe(tmp_path, monkeypatch):
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


def test_a_custom_dataset_may_have_unreadable_items():
    data = layouts.prepared(Tensors())
    assert data[0]["image"].shape == (3, 32, 32)
    errors = [data[i]["error"] for i in (1, 2, 3)]
    assert "NaN" in errors[0]
    assert "must be in [0, 1]" in errors[1]
    assert errors[2] == "the database is gone"
    assert data[0]["path"] == "mine[0]"


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_grey_and_colour_tensors_are_images(channels, dtype):
    image = (
        torch.full((channels, 40, 40), 1.0).mul(0.5 if dtype.is_floating_point else 128).to(dtype)
    )
    item = layouts.prepared([(image, 2)])[0]
    if channels == 4:
        assert "[4, 40, 40]; must be [3, H, W]" in item["error"]
    else:
        assert torch.allclose(item["image"], torch.full((3, 32, 32), 0.5), atol=0.01)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_pil_images_of_any_mode_are_images(mode):
    picture = layouts.photographs()[4].convert("L")
    picture = (
        Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        if mode == "I;16"
        else picture.convert(mode)
    )
    item = layouts.prepared([picture])[0]
    assert item["image"].shape == (3, 32, 32)
    assert 0.2 < item["image"].mean() < 0.8
    assert item["label"] == -1


def test_labels_of_out_of_distribution_images_are_hidden(pictures):
    (pictures / "list.txt").write_text("a.jpg 7\n")
    assert (
        layouts.prepared(
            ImageList(str(pictures / "list.txt"), str(pictures)), in_distribution=False
        )[0]["label"]
        == -1
    )


@pytest.mark.parametrize("label", ["cat", [0.0, 1.0], 1.5, None])
def test_an_invalid_label_matters_only_in_distribution(label):
    data = [(layouts.photographs()[0], label)]
    assert "is not a class number" in layouts.prepared(data)[0]["error"]
    assert layouts.prepared(data, in_distribution=False)[0]["image"].shape == (3, 32, 32)


def test_a_file_name_need_not_be_unicode(tmp_path):
    layouts.save(tmp_path, ["a.png"])
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xe9t\xe9.png")
    item = layouts.prepared(ImageDirectory(str(tmp_path)))[0]
    assert item["image"].shape == (3, 32, 32)
    assert item["path"].encode() == b"\\udce9t\\udce9.png"
