"""Reading and preparing images, for the data modules, deployed detectors and the demo.

Steps: :func:`read_image` (file -> PIL), :func:`as_rgb` (anything -> RGB), then the transform of an
:class:`ImagePreparation` (-> [3, H, W] in [0, 1]). :class:`Prepared` does this for a dataset and
records an image that cannot be used with its reason, in place of raising.
"""

import io
import operator
import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from diffguard_pl.errors import InputError, choose

from .formats import FORMATS, is_heif

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""
ImageLike = Tensor | np.ndarray | Image.Image | str | Path
"""One image: a path, a PIL image, an array or a tensor, see :func:`as_rgb`."""
Transform = Callable[[Image.Image | Tensor], Tensor]
"""RGB PIL image or tensor [3, h, w] -> [3, H, W] in [0, 1]."""


class TooManyPixels(ValueError):
    """An image exceeds a limit on its number of pixels."""


class UnsupportedFormat(OSError):
    """An image is of a format that cannot be read."""


def read_image(
    file: Path | bytes, upright: bool = False, max_megapixels: float | None = None
) -> Image.Image:
    """Read an image file as RGB.

    Equals ``PIL.Image.open(file).convert("RGB")``, except that 16-bit grey keeps its range. As in
    torchvision's ``ImageFolder`` and OpenOOD, transparency is dropped, only the first frame of an
    animation is read, and EXIF orientation is ignored.

    Args:
        file: Path or content of the file.
        upright: Whether to apply EXIF orientation. Defaults to False.
        max_megapixels: Largest number of pixels, in millions, checked before decoding. Defaults to
            ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million).

    Raises:
        OSError: The file is missing, truncated, not an image, or of a format not in ``FORMATS``.
        TooManyPixels: More than ``max_megapixels``.
        Image.DecompressionBombWarning: More pixels than Pillow's limit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if max_megapixels is None:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _open(file) as image:
            megapixels = image.width * image.height / 1e6
            if max_megapixels is not None and megapixels > max_megapixels:
                raise TooManyPixels(
                    f"{image.width} x {image.height} pixels ({megapixels:.0f} megapixels), "
                    f"more than the limit of {max_megapixels:g} megapixels"
                )
            image.load()
            return _pil_to_rgb(image, upright)


def is_image(file: Path) -> bool:
    """Return whether a file is an image by its first bytes, whatever its name is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _open(file).close()
    except UnsupportedFormat:
        return True
    except Exception:  # a file may make Pillow raise anything
        return False
    return True


def _open(file: Path | bytes) -> Image.Image:
    """Open an image without decoding it."""
    if isinstance(file, bytes):
        return _identified(io.BytesIO(file), file[:16])
    mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise OSError("is a folder" if os.access(file, os.R_OK | os.X_OK) else "no permission")
    if not stat.S_ISREG(mode):  # opening a pipe may block forever
        raise OSError("is not a regular file")
    with file.open("rb") as opened:
        head = opened.read(16)
    return _identified(file, head)


def _identified(source: Path | io.BytesIO, head: bytes) -> Image.Image:
    try:
        return Image.open(source, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        if is_heif(head):
            raise UnsupportedFormat(
                "is HEIC or another kind of HEIF, which needs a plugin of Pillow; pip install "
                "pillow-heif, or convert it to JPEG"
            ) from error
        raise


def as_rgb(image: ImageLike, upright: bool = False) -> Image.Image | Tensor:
    """Return an image as an RGB PIL image or a tensor [3, H, W].

    Args:
        image: Path, PIL image, array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (whose transparency
            is dropped), or tensor [H, W], [1, H, W] or [3, H, W]; arrays and tensors are uint8, or
            floating point in [0, 1].
        upright: Whether to apply EXIF orientation to files and PIL images. Defaults to False.

    Raises:
        OSError: A file cannot be read, see :func:`read_image`.
        ValueError: The image has another shape or type.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image), upright)
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image, upright)
    if isinstance(image, np.ndarray):
        image = _array_to_tensor(image)
    if isinstance(image, Tensor):
        return _tensor_to_rgb(image)
    raise ValueError(
        f"is a {type(image).__name__}; must be a path, a PIL image, an array or a tensor"
    )


def _pil_to_rgb(image: Image.Image, upright: bool) -> Image.Image:
    # Pillow opens 16-bit PNG and PPM as mode I, too, which has lost the range of its values.
    is_32_bit = image.mode == "I" and image.format not in ("PNG", "PPM")
    if upright:
        image = _turned_upright(image)
    if image.mode == "F":
        pixels = np.asarray(image)
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("has floating-point pixels that are not all in [0, 1]")
        image = Image.fromarray((pixels * 255).round().astype(np.uint8))
    elif image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255
        image = _integers_to_grey(np.asarray(image), is_32_bit)
    return image.convert("RGB")


def _integers_to_grey(pixels: np.ndarray, is_32_bit: bool) -> Image.Image:
    """Return integers as 8-bit grey: 32-bit ones hold 8-bit values, or 16-bit ones."""
    low, high = pixels.min(), pixels.max()
    if is_32_bit and not (low >= 0 and high <= 65535):
        raise ValueError(f"has 32-bit pixels from {low} to {high}; must be in 0..255 or 0..65535")
    if is_32_bit and high <= 255:
        return Image.fromarray(pixels.astype(np.uint8))
    return Image.fromarray((pixels.clip(0, 65535) / 257).round().astype(np.uint8))


def _turned_upright(image: Image.Image) -> Image.Image:
    """Apply EXIF orientation.

    ``ImageOps.exif_transpose`` also writes the EXIF block anew, which fails for entries that Pillow
    can read but not write.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged block says nothing about orientation, as for any viewer
        return image
    turn = TURNS.get(orientation or 1)
    return image if turn is None else image.transpose(turn)


def _array_to_tensor(array: np.ndarray) -> Tensor:
    """Return an array [H, W] or [H, W, C] as a tensor [1, H, W] or [3, H, W]."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise ValueError(f"is an array {list(array.shape)}; must be [H, W] or [H, W, 3]")
    # a copy: the array may be read-only
    return torch.from_numpy(np.array(array[..., :3])).permute(2, 0, 1)


def _tensor_to_rgb(image: Tensor) -> Tensor:
    """Check a tensor and give a grey one, [H, W] or [1, H, W], three equal channels."""
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"is {image.dtype}; must be uint8, or floating point in [0, 1]")
    if 0 in image.shape:
        raise ValueError(f"is {list(image.shape)}: empty")
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or len(image) not in (1, 3):
        raise ValueError(f"is {list(image.shape)}; must be [3, H, W]")
    return image.expand(3, -1, -1)


def standard_transform(resize: int, image_size: int, interpolation: str = "bilinear") -> Transform:
    """Return the transform of the original code: PIL image or tensor -> [3, H, W] in [0, 1].

    Args:
        resize: Length of the image's short side after resizing, in pixels.
        image_size: Side of the centre crop, in pixels, at most ``resize``.
        interpolation: ``bilinear`` or ``bicubic``. Defaults to ``bilinear``.

    The transform raises `TooManyPixels` if the resized image would have more pixels than an image
    may have that Pillow decodes: an image of 60,000 x 1 pixels grows 65,536-fold at 256 px. It is
    not cut to the crop before, as that changes pixels at the edges of ordinary images.
    """
    choose("interpolation", interpolation, list(INTERPOLATIONS))
    return partial(_prepared, resize=resize, size=image_size, interpolation=interpolation)


def _prepared(image: Image.Image | Tensor, resize: int, size: int, interpolation: str) -> Tensor:
    _check_resized(image, resize)
    if isinstance(image, Image.Image):
        return _prepared_pil(image, resize, size, interpolation)
    return _prepared_tensor(image, resize, size, interpolation)


def _prepared_pil(image: Image.Image, resize: int, size: int, interpolation: str) -> Tensor:
    """Prepare a PIL image, to the bit as torchvision's Resize, CenterCrop and ToTensor do."""
    width, height = image.size
    short = min(width, height)
    width, height = int(resize * width / short), int(resize * height / short)
    image = image.resize((width, height), INTERPOLATIONS[interpolation])

    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)


def _prepared_tensor(image: Tensor, resize: int, size: int, interpolation: str) -> Tensor:
    # torchvision takes longer to import than torch, and images are rarely tensors
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import center_crop
    from torchvision.transforms.v2.functional import resize as resized_to

    image = resized_to(image, [resize], InterpolationMode(interpolation), antialias=True)
    image = center_crop(image, [size, size]).as_subclass(Tensor)
    # as ToTensor does; scaling by v2 multiplies by 1/255
    return image.float() if image.is_floating_point() else image.float().div(255)


def _check_resized(image: Image.Image | Tensor, resize: int) -> None:
    """Raise `TooManyPixels` if an image would be too large when it is resized."""
    limit = Image.MAX_IMAGE_PIXELS
    width, height = image.size if isinstance(image, Image.Image) else image.shape[:-3:-1]
    short, long = sorted((width, height))
    resized = resize * long // max(short, 1)
    if limit is not None and resize * resized > limit:
        raise TooManyPixels(
            f"{width} x {height} pixels, which become {resize:,} x {resized:,} as the short side "
            f"is resized to {resize}: more than the limit of {limit / 1e6:.0f} megapixels; crop it"
        )


@dataclass(frozen=True)
class ImagePreparation:
    """How images of any size become those that the model takes.

    Attributes:
        image_size: Side of the centre crop, in pixels.
        resize: Length of the short side before cropping, in pixels.
        interpolation: ``bilinear`` or ``bicubic``. Defaults to ``bilinear``.
        upright: Whether to apply EXIF orientation. Defaults to False.
    """

    image_size: int
    resize: int
    interpolation: str = "bilinear"
    upright: bool = False

    def __post_init__(self) -> None:
        choose("interpolation", self.interpolation, list(INTERPOLATIONS))
        if self.resize < self.image_size:
            raise InputError(
                f"preparation: resize={self.resize} is less than image_size={self.image_size}, "
                "the side of the centre crop; increase resize"
            )

    @cached_property
    def transform(self) -> Transform:
        """RGB PIL image or tensor [3, h, w] -> [3, H, W] float32 in [0, 1]."""
        return standard_transform(self.resize, self.image_size, self.interpolation)

    def __call__(self, image: ImageLike) -> Tensor:
        """Return an image, see :func:`as_rgb`, as [3, H, W] float32.

        Values of a floating-point tensor are not checked.
        """
        return self.transform(as_rgb(image, self.upright))


class Prepared(Dataset):
    """Items of a dataset as dicts; an image that cannot be used is replaced by the reason.

    An item has ``index``, ``path``, ``label``, and either ``image`` [3, H, W] in [0, 1] or
    ``error``. See :class:`~diffguard_pl.evaluation.module.DiffGuardModule`.

    Args:
        data: Dataset whose items are pairs (image, label, ...), dicts with ``image`` and
            ``label``, or images, see :func:`as_rgb`. It may define ``path_of(index)`` and
            ``label_of(index)``.
        transform: Maps an RGB PIL image or a tensor [3, h, w] to [3, H, W] in [0, 1].
        name: Prefix of the paths of a dataset that defines none.
        in_distribution: Whether to keep the labels; otherwise every label is -1.
    """

    def __init__(self, data: Dataset, transform: Transform, name: str, in_distribution: bool):
        self.data, self.transform, self.name = data, transform, name
        self.in_distribution = in_distribution

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = f"{self.name}[{index}]", -1
        if hasattr(self.data, "path_of"):
            path = self.data.path_of(index)
        if hasattr(self.data, "label_of"):  # known even if the image is broken
            label = self.data.label_of(index)
        item: dict[str, Any] = {
            "index": index,
            "path": path.encode("utf-8", "backslashreplace").decode(),  # may be any bytes
            "label": label if self.in_distribution else -1,
        }
        try:
            image, label = _image_and_label(self.data[index])
            if self.in_distribution:
                item["label"] = _class_number(label)
            prepared = self.transform(as_rgb(image))
            _check(prepared)
            item["image"] = prepared
        except Exception as error:  # files and foreign datasets may raise anything
            item["error"] = reason(error)
        return item


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the readable images as a batch; ``unreadable`` lists the other items."""
    readable = [item for item in items if "image" in item]
    unreadable = [item for item in items if "image" not in item]
    empty = {"image": torch.zeros(0), "index": [], "path": [], "label": []}
    return (default_collate(readable) if readable else empty) | {"unreadable": unreadable}


def reason(error: Exception) -> str:
    """Return why an image cannot be used, in one line."""
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow can read"
    message = " ".join(str(error).split())
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return "too many pixels: " + message.split(", could be")[0]
    return message or type(error).__name__


def _image_and_label(item: Any) -> tuple[Any, Any]:
    if isinstance(item, dict):
        if "image" not in item:
            raise ValueError(f"key 'image' not found; its keys are: {', '.join(map(str, item))}")
        return item["image"], item.get("label", -1)
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else -1
    return item, -1


def _class_number(label: Any) -> int:
    try:
        return operator.index(label)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"label {str(label)[:40]!r} is not a class number; use -1 where it is unknown"
        ) from error


def _check(image: Tensor) -> None:
    """Check shape and range of a prepared image."""
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"is {list(image.shape)}; must be [3, H, W]")
    if not image.isfinite().all():
        raise ValueError("has NaN or infinite values")
    if image.min() < 0 or image.max() > 1:
        low, high = image.min(), image.max()
        raise ValueError(f"has values from {low:.3g} to {high:.3g}; must be in [0, 1]")
