"""Test on a dataset of your own: a folder of images, in a config that builds on a shipped one.

The folders are drawn here: scribbles and grey ramps, which played no part in training the shipped
models or choosing their settings. The in-distribution dataset is the shipped one. `OODDataModule`
takes folders, OpenOOD's image lists, and any torch dataset by the import path of its class or of a
function that returns it.

For your own: leave out the first cell, set `root` to your folder and `ind` to the dataset that your
classifier was trained on, and name your config, or the shipped one that you use, as `base`.

    python examples/add_ood_dataset.py
"""

# %% A folder of images; subfolders and any size will do
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

OUT = Path(os.environ.get("OUT", "runs/add_ood_dataset")).resolve()
COUNT = int(os.environ.get("LIMIT", "100"))  # images of each dataset


def draw_scribbles(folder: Path, count: int) -> None:
    """Draw closed strokes through five random points, white on black, 64 px."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        image = Image.new("L", (64, 64))
        points = [tuple(point) for point in generator.integers(8, 56, (5, 2)).tolist()]
        ImageDraw.Draw(image).line([*points, points[0]], fill=255, width=7, joint="curve")
        image.save(folder / f"{i:03}.png")


def draw_ramps(folder: Path, count: int) -> None:
    """Draw grey that rises in a random direction, 64 px."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:64, 0:64] / 63
    for i, angle in enumerate(np.random.default_rng(1).uniform(0, 2 * np.pi, count)):
        ramp = np.cos(angle) * x + np.sin(angle) * y
        grey = 255 * (ramp - ramp.min()) / np.ptp(ramp)
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"{i:03}.png")


SCRIBBLES, RAMPS = OUT / "images" / "scribbles", OUT / "images" / "ramps"
draw_scribbles(SCRIBBLES, COUNT)
draw_ramps(RAMPS, COUNT)

# %% A config: `base`, and what differs from it
config = OUT / "my_datasets.yaml"
config.write_text(
    f"""\
base: fast/digits_ldm
model:
  discrepancies: [maps, l2]
data:
  class_path: OODDataModule
  init_args:
    image_size: 16
    resize: 16
    num_workers: 0
    limit: {COUNT}
    ind:
      digits: {{class_path: diffguard_pl.datamodules.digits.digits, init_args: {{part: test}}}}
    ood:
      near:
        scribbles: {{class_path: ImageDirectory, init_args: {{root: {SCRIBBLES}}}}}
      far:
        ramps: {{class_path: ImageDirectory, init_args: {{root: {RAMPS}}}}}
"""
)

# %% The test: a table here, and scores, pictures and a report page in a new folder under runs/
command = [sys.executable, "-m", "diffguard_pl.test", "--config", str(config)]
subprocess.run(command, cwd=OUT, check=True)

# %% The same table for a program
file = max(OUT.glob("runs/*/*/metrics.csv"), key=lambda file: file.stat().st_mtime)
print(pd.read_csv(file)[["dataset", "score", "auroc", "fpr95"]])
