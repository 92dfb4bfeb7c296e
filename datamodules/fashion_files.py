"""The original files of Fashion-MNIST: found or downloaded, verified and read.

They are in the IDX format: a header of 8 bytes for labels or 16 for images, then one byte a value.
A file is read only if its SHA-256 is the published one, so that its header need not be trusted.
MNIST, KMNIST and others give their files the same names and sizes.
"""

import gzip
import zlib
from functools import cache
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffguard_pl.checkpoints.download import cache_folder, fetch
from diffguard_pl.errors import InputError

SERVER = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
"""Where the authors publish the files, and torchvision gets them."""
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder of Debian's package dataset-fashion-mnist."""
TORCHVISION = Path("FashionMNIST/raw")
"""Subfolder in which torchvision keeps the files."""
REMEDY = (
    "set data.root to a folder of Fashion-MNIST's four IDX files, or leave it out and `apt install "
    "dataset-fashion-mnist`"
)


class IdxFile(NamedTuple):
    """One of the four files.

    Attributes:
        shape: Shape of its values.
        sha256: SHA-256 of its content.
        sha256_gz: SHA-256 of the compressed file on the server.
    """

    shape: tuple[int, ...]
    sha256: str
    sha256_gz: str

    @property
    def header_size(self) -> int:
        """Number of bytes before the values: a magic number and the size of each dimension."""
        return 4 + 4 * len(self.shape)


FILES = {
    "train-images-idx3-ubyte": IdxFile(
        (60000, 28, 28),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    "train-labels-idx1-ubyte": IdxFile(
        (60000,),
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    "t10k-images-idx3-ubyte": IdxFile(
        (10000, 28, 28),
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    "t10k-labels-idx1-ubyte": IdxFile(
        (10000,),
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
}


@cache
def official(part: str, root: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 28, 28] and labels [N] of one part, uint8.

    Args:
        part: ``train`` or ``t10k``.
        root: Folder of the files. Defaults to Debian's; without it, they are downloaded.

    Raises:
        InputError: A file is not found and cannot be downloaded, is damaged, or is another one.
    """
    return (
        read(find(f"{part}-images-idx3-ubyte", root)),
        read(find(f"{part}-labels-idx1-ubyte", root)),
    )


def find(name: str, root: str | None = None) -> Path:
    """Return the path of one of `FILES`, compressed or not; download it if needed."""
    if root is not None:
        file = _in_folder(Path(root).expanduser(), name)
        if file is None:
            raise InputError(
                f"data.root={root}: {name} not found there or in {TORCHVISION}, with or without "
                f".gz; {REMEDY}"
            )
        return file

    for folder in (DEBIAN, cache_folder()):
        file = _in_folder(folder, name)
        if file is not None:
            return file

    # the same file, from the same place, as by torchvision; but resumed and verified
    archive = f"{name}.gz"
    try:
        return fetch(
            SERVER + archive, cache_folder() / TORCHVISION, archive, sha256=FILES[name].sha256_gz
        )
    except InputError as error:
        raise InputError(f"{error}; or {REMEDY}") from error


def _in_folder(folder: Path, name: str) -> Path | None:
    """Return a file in a folder or its torchvision subfolder, if it is in one of them."""
    for place in (folder, folder / TORCHVISION):
        for file in (place / name, place / f"{name}.gz"):
            if file.is_file():
                return file
    return None


def read(file: Path) -> np.ndarray:
    """Return the values of one of `FILES`, uint8.

    Raises:
        InputError: The file cannot be read, or its content is not the published one.
    """
    expected = FILES[file.name.removesuffix(".gz")]
    size = expected.header_size + prod(expected.shape)
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rb") as stream:
            content = stream.read(size + 1)  # no more, whatever the file holds
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file}: is damaged ({error}); replace it, or {REMEDY}") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from error

    if len(content) != size:
        found = f"more than {size:,}" if len(content) > size else f"{len(content):,}"
        raise InputError(
            f"{file}: is truncated or of another dataset (has {found} bytes of content, expected "
            f"{size:,}); replace it, or {REMEDY}"
        )
    if sha256(content).hexdigest() != expected.sha256:
        raise InputError(
            f"{file}: is damaged or of another dataset, such as MNIST (its SHA-256 is not "
            f"Fashion-MNIST's); replace it, or {REMEDY}"
        )
    return np.frombuffer(content, np.uint8, offset=expected.header_size).reshape(expected.shape)
