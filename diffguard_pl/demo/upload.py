"""Reading of uploaded images within limits that are checked before decoding."""

from pathlib import Path

from PIL import Image, ImageOps

from ..datamodules.reading import FORMATS, TooManyPixels, read_image, reason
from ..errors import InputError
from ..web.limits import DEFAULT_LIMITS, Limits


def read_upload(
    file: Path, name: str, invert: bool = False, limits: Limits = DEFAULT_LIMITS
) -> Image.Image:
    """Read an uploaded file as RGB, upright; of an animation the first frame.

    Args:
        file: Path of the file.
        name: Name of the file on its owner's machine, for messages.
        invert: Whether to invert the colours. Defaults to False.
        limits: Limits on the upload.

    Raises:
        InputError: The file is too large, has too many pixels, is damaged, or is not an image.
    """
    try:
        megabytes = file.stat().st_size / 2**20
        if megabytes > limits.megabytes:
            raise InputError(
                f"{name}: {megabytes:.1f} MB, more than the limit of {limits.megabytes:g} MB"
            )
        image = read_image(file, upright=True, max_megapixels=limits.megapixels)
    except InputError:
        raise
    except Exception as error:  # a file may make Pillow raise anything
        raise InputError(f"{name}: {_explain(error)}") from error
    return ImageOps.invert(image) if invert else image


def _explain(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image in a supported format; choose from: {', '.join(FORMATS)}"
    if isinstance(error, TooManyPixels | Image.DecompressionBombError):
        return reason(error)
    return f"damaged or truncated ({reason(error)})"
