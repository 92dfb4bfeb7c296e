"""Stand-ins for the original files of Fashion-MNIST, in the same format."""

import gzip
import struct
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from diffguard_pl.datamodules import fashion_files
from diffguard_pl.datamodules.fashion_files import IdxFile, official


def idx(values: np.ndarray) -> bytes:
    """Return an array, uint8, in the IDX format: 0, 0, type, dimensions, sizes, values."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


def save(folder: Path, name: str, values: np.ndarray, packed: bool = True) -> Path:
    """Write an IDX file, compressed or not."""
    folder.mkdir(parents=True, exist_ok=True)
    content = idx(values)
    file = folder / (f"{name}.gz" if packed else name)
    file.write_bytes(gzip.compress(content, 1, mtime=0) if packed else content)
    return file


def values_of(part: str, count: int) -> dict[str, np.ndarray]:
    """Return images and labels by file name: an image begins with its index, in three bytes."""
    index = np.arange(count)
    images = np.full((count, 28, 28), 200, np.uint8)  # none is black: articles are looked for
    for place, shift in enumerate((16, 8, 0)):
        images[:, 0, place] = index >> shift & 255
    labels = (index % 10).astype(np.uint8)
    return {f"{part}-images-idx3-ubyte": images, f"{part}-labels-idx1-ubyte": labels}


def index_of(images: np.ndarray) -> list[int]:
    """Return the index with which each of such images [N, 28, 28] begins."""
    return (images[:, 0, :3] @ np.array([1 << 16, 1 << 8, 1])).tolist()


def entries(values: dict[str, np.ndarray]) -> dict[str, IdxFile]:
    """Return what `FILES` says of these files, compressed as by `save`."""
    found = {}
    for name, array in values.items():
        content = idx(array)
        packed = gzip.compress(content, 1, mtime=0)
        found[name] = IdxFile(array.shape, sha256(content).hexdigest(), sha256(packed).hexdigest())
    return found


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> Path:
    """A cache folder, empty, on a machine without Debian's files."""
    monkeypatch.setattr(fashion_files, "DEBIAN", tmp_path / "debian")
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    official.cache_clear()
    yield tmp_path / "cache"
    official.cache_clear()
