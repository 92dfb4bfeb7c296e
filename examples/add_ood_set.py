"""A data set of your own to test on: a folder of pictures, in a config that builds on a shipped one.

The folders are made here, of scribbles and of grey ramps; none of them was looked at when the shipped models were trained or their
settings chosen. The in-distribution set is the shipped one: `OODDataModule` takes folders, OpenOOD's image lists, and any torch
data set by the path of its class, or of a function that gives one.

For your own: leave out the first cell, point `root` to your folder, give the in-distribution set that your classifier knows, and
name your config, or the shipped one that you use, as `base`.

    python examples/add_ood_set.py
"""

# %% A folder of pictures; subfolders and any size will do
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image, ImageDraw

OUT = Path(os.environ.get("OUT", "runs/add_ood_set")).resolve()
COUNT = int(os.environ.get("LIMIT", "100"))  # images of each set


def scribbles(folder: Path, count: int) -> None:
    """Closed strokes through five random points, white on black, 64 px."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        picture = Image.new("L", (64, 64))
        points = [tuple(point) for point in generator.integers(8, 56, (5, 2)).tolist()]
        ImageDraw.Draw(picture).line([*points, points[0]], fill=255, width=7, joint="curve")
        picture.save(folder / f"{i:03}.png")


def ramps(folder: Path, count: int) -> None:
    """Grey rising in a random direction, 64 px."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:64, 0:64] / 63
    for i, angle in enumerate(np.random.default_rng(1).uniform(0, 2 * np.pi, count)):
        rising = np.cos(angle) * x + np.sin(angle) * y
        Image.fromarray((255 * (rising - rising.min()) / np.ptp(rising)).astype(np.uint8)).save(
            folder / f"{i:03}.png"
        )


scribbles(OUT / "pictures" / "scribbles", COUNT)
ramps(OUT / "pictures" / "ramps", COUNT)

# %% A config: `base`, and what differs from it
mine = {
    "base": "fast/digits_ldm",
    "model": {"discrepancies": ["maps", "l2"]},
    "data": {
        "class_path": "OODDataModule",
        "init_args": {
            "image_size": 16,
            "resize": 16,
            "num_workers": 0,
            "limit": COUNT,
            "ind": {
                "digits": {
                    "class_path": "diffguard_pl.datamodules.digits.digits",
                    "init_args": {"part": "test"},
                }
            },
            "ood": {
                "near": {
                    "scribbles": {
                        "class_path": "ImageDirectory",
                        "init_args": {"root": str(OUT / "pictures" / "scribbles")},
                    }
                },
                "far": {
                    "ramps": {
                        "class_path": "ImageDirectory",
                        "init_args": {"root": str(OUT / "pictures" / "ramps")},
                    }
                },
            },
        },
    },
}
config = OUT / "my_sets.yaml"
config.write_text(yaml.safe_dump(mine, sort_keys=False))
print(config.read_text())

# %% The test: a table here, and scores, pictures and a report page in a folder of its own
subprocess.run(
    [sys.executable, "-m", "diffguard_pl.test", "--config", str(config)], cwd=OUT, check=True
)

# %% The same table for a program
file = max(OUT.glob("runs/*/*/metrics.csv"), key=lambda file: file.stat().st_mtime)
print(pd.read_csv(file)[["dataset", "score", "auroc", "fpr95"]])
