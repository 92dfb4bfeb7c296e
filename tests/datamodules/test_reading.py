"""Reading and preparing images."""

import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import layouts
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IFDRational
from torch.utils.data import Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from diffguard_pl.datamodules import ImageDirectory, ImageList
from diffguard_pl.datamodules.reading import (
    Prepared,
    TooManyPixels,
    as_rgb,
    read_image,
    standard_transform,
)


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


@pytest.mark.parametrize("size", [(2000, 30), (17, 1500), (257, 256), (1, 1), (1500, 2)])
def test_an_image_of_any_ordinary_shape_is_prepared_to_the_bit_as_in_the_original(size):
    original = v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.ToTensor()])
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert torch.equal(standard_transform(256, 224)(image), original(image))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_tensors_are_prepared_as_torchvision_does(dtype, interpolation):
    image = torch.randint(0, 256, (3, 30, 41), generator=torch.Generator().manual_seed(0))
    image = image.to(dtype) if dtype == torch.uint8 else image / 255
    mode = v2.InterpolationMode(interpolation)
    resized = v2.functional.resize(image, [24], mode, antialias=True)
    expected = v2.functional.center_crop(resized, [16, 16]).float()
    prepared = standard_transform(24, 16, interpolation)(image)
    assert torch.equal(prepared, expected / 255 if dtype == torch.uint8 else expected)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_an_image_that_would_grow_beyond_the_limit_of_pixels_is_refused(size, tmp_path):
    Image.new("L", size).save(tmp_path / "thin.png")
    prepared = Prepared(ImageDirectory(str(tmp_path)), standard_transform(256, 224), "x", True)
    assert re.search(r"60000.*resized to 256.*89 megapixels; crop", prepared[0]["error"])
    with pytest.raises(TooManyPixels, match="15,360,000"):
        standard_transform(256, 224)(torch.zeros(2, 3, *size))
    assert standard_transform(16, 16)(read_image(tmp_path / "thin.png")).shape == (3, 16, 16)


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


def test_32_bit_integers_are_8_bit_or_16_bit_values():
    grey = np.asarray(layouts.photographs()[4].convert("L")).astype(np.int32)
    for pixels in (grey, grey * 257):
        content = layouts.encoded(Image.fromarray(pixels), "TIFF")
        assert np.array_equal(np.asarray(read_image(content))[..., 0], grey)
        assert np.array_equal(np.asarray(as_rgb(Image.fromarray(pixels)))[..., 0], grey)
    for pixels in (grey - 1000, grey * 1000):
        with pytest.raises(ValueError, match=r"32-bit pixels from .*must be in 0\.\.255 or"):
            read_image(layouts.encoded(Image.fromarray(pixels), "TIFF"))
    # values of a 16-bit format, which Pillow opens in 32 bits
    assert np.asarray(read_image(b"P5 2 1 65535\n\0\x64\xff\xff"))[..., 0].tolist() == [[0, 255]]


def test_orientation_is_ignored_by_default():
    picture = layouts.photographs()[2].crop((0, 0, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = layouts.encoded(picture, "JPEG", exif=exif)
    assert read_image(content).size == (60, 40)
    assert read_image(content, upright=True).size == (40, 60)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_by_pillow(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = layouts.encoded(layouts.photographs()[2].crop((0, 0, 60, 40)), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    assert np.array_equal(np.asarray(read_image(content, upright=True)), np.asarray(upright))


def test_an_exif_block_that_cannot_be_written_back_or_read_loses_no_photo():
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, IFDRational(72, 1)
    # the resolution 72/1 becomes -72/1, which Pillow reads, and fails to write without a sign
    content = layouts.encoded(layouts.photographs()[2].crop((0, 0, 60, 40)), "JPEG", exif=exif)
    header = exif.tobytes()
    negative = header.replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x0a").replace(
        b"\0\0\0\x48\0\0\0\x01", b"\xff\xff\xff\xb8\0\0\0\x01"
    )
    assert read_image(content.replace(header, negative), upright=True).size == (40, 60)
    damaged = header[:6] + b"XX" + header[8:]
    assert read_image(content.replace(header, damaged), upright=True).size == (60, 40)


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
