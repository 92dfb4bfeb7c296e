"""Throughput of the dataloaders: JPEG files decoded, resized and cropped per second.

    python benchmarks/loading.py

Pictures are crops of scikit-learn's photographs at the size of ImageNet's (500 x 375, quality 90),
read as ``configs/gdm.yaml`` and ``configs/ldm.yaml`` read them. Compare with the images/s of
``throughput.py``: loading has to be faster, and it works ahead, while the device computes.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from diffguard_pl.datamodules import ImageDirectory, OODDataModule

FILES = 600


def write(folder: Path) -> None:
    """Real photographs, cut at random."""
    photos, chance = load_sample_images().images, np.random.default_rng(0)
    for i in range(FILES):
        photo = Image.fromarray(photos[i % 2])
        x, y = chance.integers(0, photo.width - 500), chance.integers(0, photo.height - 375)
        photo.crop((x, y, x + 500, y + 375)).save(folder / f"{i:04}.jpg", quality=90)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        print("| workers | image size | images/s |\n|---:|---:|---:|")
        for size in (224, 256):
            for workers in (0, 1, 2, 4):
                source = {"photos": ImageDirectory(folder)}
                data = OODDataModule(
                    source,
                    {"far": {"again": source["photos"]}},
                    size,
                    256,
                    batch_size=32,
                    num_workers=workers,
                )
                loader = data.test_dataloader()["photos"]
                batches = iter(loader)
                next(batches)  # the workers have started
                began = time.perf_counter()
                count = sum(len(batch["image"]) for batch in batches)
                print(
                    f"| {workers} | {size} | {count / (time.perf_counter() - began):.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
