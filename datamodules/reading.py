"""Image files to tensors, as the original reads them; what cannot be read is said, not raised."""

import io
import operator
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from diffguard_pl.errors import choose

Image.init()
FORMATS = tuple(
    kind
    for kind in ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    if kind in Image.OPEN
)
"""Pillow reads more, some of it by running programs, whatever a file is called. An old Pillow has no AVIF."""
INTERPOLATIONS = {
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}


def read_image(file: Path | bytes, upright: bool = False) -> Image.Image:
    """An image file as RGB, as ``PIL.Image.open(file).convert("RGB")`` gives it, but for 16-bit grey, which keeps its range.

    Transparency is dropped, the first frame of an animation is taken, and EXIF orientation is ignored, as torchvision's
    ``ImageFolder`` and OpenOOD do.

    Args:
        file: its path or its content.
        upright: turn it as its EXIF orientation says.

    Raises:
        OSError: missing, truncated, not an image, or of a format that is not among ``FORMATS``.
        Image.DecompressionBombWarning: more pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million), found before they are decoded.
    """
    if isinstance(file, Path) and not stat.S_ISREG(
        mode := file.stat().st_mode
    ):  # to open a pipe may take for ever
        raise OSError("is a folder" if stat.S_ISDIR(mode) else "is no regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(
            io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS
        ) as image:
            image.load()
            return rgb(ImageOps.exif_transpose(image) if upright else image)


def rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        pixels = np.asarray(image)
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("has floating-point pixels that are not all in [0, 1]")
        image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    if image.mode.startswith("I"):  # PIL would clip 16-bit values at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def standard_transform(
    resize: int, image_size: int, interpolation: str = "bilinear"
) -> v2.Transform:
    """The original's: short side to ``resize`` pixels, centre crop to ``image_size``, [3, H, W] float32 in [0, 1]."""
    choose("interpolation", interpolation, list(INTERPOLATIONS))
    return v2.Compose(
        [
            v2.Resize(resize, INTERPOLATIONS[interpolation], antialias=True),
            v2.CenterCrop(image_size),
            v2.Lambda(_to_unit_range),
        ]
    )


def _to_unit_range(image: Image.Image | Tensor) -> Tensor:
    """As ``ToTensor`` divides, to the last bit: v2's own scaling multiplies by 1/255."""
    tensor = (
        pil_to_tensor(image) if isinstance(image, Image.Image) else image.as_subclass(torch.Tensor)
    )
    return tensor.float() if tensor.is_floating_point() else tensor.float().div(255)


class Prepared(Dataset):
    """A data set as :class:`~diffguard_pl.evaluation.module.DiffGuardModule` wants it; an image that cannot be had is an item without one.

    Args:
        data: items are pairs (image, label, ...), dicts with ``image`` and ``label``, or images; images are PIL, or tensors
            [3, H, W] or [1, H, W], uint8 or in [0, 1]. It may have methods ``path_of(index)`` and ``label_of(index)``.
        transform: PIL image or tensor -> [3, H, W] in [0, 1].
        name: for paths, where the data set knows none.
        in_distribution: keep the labels; else every label is -1.
    """

    def __init__(self, data: Dataset, transform: v2.Transform, name: str, in_distribution: bool):
        self.data, self.transform, self.name, self.in_distribution = (
            data,
            transform,
            name,
            in_distribution,
        )

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = (
            self.data.path_of(index) if hasattr(self.data, "path_of") else f"{self.name}[{index}]"
        )
        label = (
            self.data.label_of(index) if hasattr(self.data, "label_of") else -1
        )  # known even if the image is broken
        path = path.encode("utf-8", "backslashreplace").decode()  # a name on disk may be anything
        item: dict[str, Any] = {
            "index": index,
            "path": path,
            "label": label if self.in_distribution else -1,
        }
        try:
            image, label = _image_and_label(self.data[index])
            if self.in_distribution:
                item["label"] = _class_number(label)
            item["image"] = self.transform(
                three_channels(image) if isinstance(image, Tensor) else rgb(image)
            )
            _check(item["image"])
        except Exception as error:  # whatever a file or somebody's data set comes up with
            item.pop("image", None)
            item["error"] = reason(error)
        return item


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the readable images as a batch; ``unreadable`` lists the other items."""
    readable = [item for item in items if "image" in item]
    unreadable = [item for item in items if "image" not in item]
    empty = {"image": torch.zeros(0), "index": [], "path": [], "label": []}
    return (default_collate(readable) if readable else empty) | {"unreadable": unreadable}


def reason(error: Exception) -> str:
    """Why an image cannot be used, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return "too many pixels: " + " ".join(str(error).split()).split(", could be")[0]
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that PIL can read"
    return " ".join(str(error).split()) or type(error).__name__


def _image_and_label(item: Any) -> tuple[Any, Any]:
    if isinstance(item, dict):
        if "image" not in item:
            raise ValueError(f"has no key 'image'; its keys are: {', '.join(map(str, item))}")
        return item["image"], item.get("label", -1)
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else -1
    return item, -1


def _class_number(label: Any) -> int:
    try:
        return operator.index(label)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"its label {str(label)[:40]!r} is not the number of a class") from error


def three_channels(image: Tensor) -> Tensor:
    """A tensor [3, H, W] as it is, a grey one, [1, H, W] or [H, W], with three equal channels."""
    grey = image.ndim == 2 or (image.ndim == 3 and len(image) == 1)
    return image.reshape(1, *image.shape[-2:]).expand(3, -1, -1) if grey else image


def _check(image: Tensor) -> None:
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"is {list(image.shape)}, expected [3, H, W]")
    if not image.isfinite().all():
        raise ValueError("has NaN or infinite values")
    if image.min() < 0 or image.max() > 1:
        raise ValueError(f"has values from {image.min():.3g} to {image.max():.3g}, expected [0, 1]")
