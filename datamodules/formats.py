"""Image formats that are read, and files that are images by their names."""

from contextlib import suppress
from pathlib import Path

from PIL import Image

Image.init()
with suppress(ImportError):  # an optional plugin for photos of phones
    from pillow_heif import register_heif_opener

    register_heif_opener()

FORMATS = tuple(
    name
    for name in (
        "AVIF",
        "BMP",
        "GIF",
        "HEIF",
        "ICO",
        "JPEG",
        "JPEG2000",
        "PNG",
        "PPM",
        "TIFF",
        "WEBP",
    )
    if name in Image.OPEN
)
"""Formats that are read. Pillow knows more, runs programs for some, and ignores file extensions.

Old versions of Pillow lack AVIF; HEIF needs the package pillow-heif.
"""

_NO_IMAGES = ("BUFR", "FITS", "GRIB", "HDF5", "MPEG", "PDF")
"""Formats of Pillow that hold data, videos or documents."""
_RAW = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".kdc", ".mef", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".sr2", ".srf", ".srw", ".x3f"),
}
"""Suffixes of the raw files of cameras."""
_UNKNOWN_TO_PILLOW = {
    *(".avif", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl", ".jxr", ".wdp", ".hdp"),
    *(".svg", ".svgz", ".exr", ".hdr"),
}
"""Suffixes of images that Pillow needs a plugin for, or cannot read at all."""

# Pillow's reader of JPEG opens MPO, several JPEG images in one file.
READABLE_SUFFIXES = frozenset(
    suffix for suffix, name in Image.EXTENSION.items() if name in (*FORMATS, "MPO")
)
"""Suffixes of the files of `FORMATS`, in lower case."""
IMAGE_SUFFIXES = (
    READABLE_SUFFIXES
    | _RAW
    | _UNKNOWN_TO_PILLOW
    | {suffix for suffix, name in Image.EXTENSION.items() if name not in _NO_IMAGES}
)
"""Suffixes of image files, in lower case, also of those that cannot be read."""


def has_image_name(file: str | Path) -> bool:
    """Return whether a file is an image by its suffix, readable or not."""
    return Path(file).suffix.lower() in IMAGE_SUFFIXES


def is_heif(head: bytes) -> bool:
    """Return whether the first 16 bytes of a file are those of HEIF, and no plugin reads it."""
    brands = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
    return "HEIF" not in FORMATS and head[4:8] == b"ftyp" and head[8:12] in brands
