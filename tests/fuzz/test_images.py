"""Damaged image files: read as Pillow reads them, or named as unreadable."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.mutations import damaged, fuzz, outcome
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffguard_pl.datamodules.reading import FORMATS, ImagePreparation
from diffguard_pl.demo.upload import read_upload
from diffguard_pl.deploy.image_batches import image_batches
from diffguard_pl.web.limits import Limits

PREPARATION = ImagePreparation(image_size=16, resize=18)
SMALL = Limits(megabytes=1, megapixels=1)


def photo(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def encoded(name: str, mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    options = {"exif": exif()} if name in ("JPEG", "PNG", "WEBP") else {}
    photo(mode).save(content, name, **options)
    return content.getvalue()


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6  # orientation
    tags[0x010F] = "maker"
    return tags.tobytes()


KINDS = [(name, "RGB") for name in FORMATS]
KINDS += [("PNG", "P"), ("PNG", "RGBA"), ("PNG", "I;16"), ("GIF", "P"), ("TIFF", "CMYK")]
FILES = [encoded(name, mode) for name, mode in KINDS]


def expected(content: bytes) -> torch.Tensor | None:
    """Read an image with Pillow alone; None if it cannot, or if its modes are ours to convert."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                if image.mode == "F" or image.mode.startswith("I"):
                    return None
                return PREPARATION.transform(image.convert("RGB"))
    except Exception:
        return None


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("image") / "image"


@fuzz(400)
@given(content=st.sampled_from(FILES).flatmap(damaged))
def test_a_damaged_image_is_read_as_pillow_does_or_named(file, content):
    file.write_bytes(content)
    (batch,) = image_batches({str(file): None}, PREPARATION, 1, 0)
    if batch["unreadable"]:
        (item,) = batch["unreadable"]
        assert item["path"] == str(file)
        assert item["error"]
        assert len(item["error"].splitlines()) == 1
        assert len(item["error"]) < 500
        return
    (image,) = batch["image"]
    assert image.shape == (3, 16, 16)
    assert image.min() >= 0
    assert image.max() <= 1
    by_pillow = expected(content)
    if by_pillow is not None:
        assert torch.equal(image, by_pillow)


@fuzz(150)
@given(content=st.sampled_from(FILES).flatmap(damaged), invert=st.booleans())
def test_a_damaged_upload_is_read_or_refused_in_one_line(file, content, invert):
    file.write_bytes(content)
    image = outcome(lambda: read_upload(file, "upload.png", invert, SMALL))
    assert image is None or (image.mode == "RGB" and image.width * image.height <= 1e6)


@pytest.mark.parametrize("content", FILES, ids=[f"{name}-{mode}" for name, mode in KINDS])
def test_bytes_behind_an_image_change_nothing_unless_pillow_refuses_them(file, content):
    images = []
    for added in (b"", b"\0" * 7, content):
        file.write_bytes(content + added)
        (batch,) = image_batches({str(file): None}, PREPARATION, 1, 0)
        if not batch["unreadable"]:
            images.append(batch["image"][0])
        else:
            assert added
            assert expected(content + added) is None
    by_pillow = expected(content)
    assert by_pillow is None or torch.equal(images[0], by_pillow)
    assert all(torch.equal(image, images[0]) for image in images)
