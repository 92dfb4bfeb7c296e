"""What somebody has uploaded, as an image: its size is known before it is decoded, and only plain formats are."""

import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from ..datamodules.reading import FORMATS, reason, rgb
from ..errors import InputError


class Limits(NamedTuple):
    """Of an upload."""

    megabytes: float = 10
    megapixels: float = 40


USUAL = Limits()


def read_upload(file: Path, name: str, invert: bool = False, limits: Limits = USUAL) -> Image.Image:
    """An uploaded file as RGB, upright, the first frame of an animation.

    Args:
        file: where it is.
        name: what its owner calls it.
        invert: make it its negative.
        limits: of what is read at all.

    Raises:
        InputError: too large, too many pixels, broken, or no image.
    """
    try:
        megabytes = file.stat().st_size / 2**20
        if megabytes > limits.megabytes:
            raise InputError(
                f"{name}: {megabytes:.1f} MB; at most {limits.megabytes:g} are taken here"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit is ours
            with Image.open(file, formats=FORMATS) as image:
                megapixels = image.width * image.height / 1e6
                if megapixels > limits.megapixels:
                    raise InputError(
                        f"{name}: {image.width} x {image.height} pixels, {megapixels:.0f} megapixels; "
                        f"at most {limits.megapixels:g} are taken here"
                    )
                image.load()
                upright = rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Exception as error:  # whatever a file comes up with
        raise InputError(f"{name}: {_said(error)}") from error
    return ImageOps.invert(upright) if invert else upright


def _said(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image that can be read here; there are: {', '.join(FORMATS)}"
    return (
        reason(error)
        if isinstance(error, Image.DecompressionBombError)
        else f"broken, or cut short ({reason(error)})"
    )
