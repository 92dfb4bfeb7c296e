"""A discrepancy of your own, by its import path: in Python, and in a config. Is it better than `maps`?

`my_discrepancies.py` beside this file holds a function of two `Seen` and a class. They are compared with `maps` on the tuning split
of the digits, validation digits against chimeras and symbols, and do not beat it. The test sets, 4 and 9 among them, are for the
one that you have chosen.

For your own: write a function of two `Seen` (pictures, and the classifier's logits, features and feature maps of them) that gives a
number for each pair, higher = more alike, and name it `package.module.function`. Any module will do that Python finds: an installed
one, or one in the folder that you start from.

    python examples/add_discrepancy.py
"""

# %% In Python
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml
from torch import cat, ones, zeros
from torchmetrics.functional.classification import binary_auroc

import diffguard_pl
from diffguard_pl.datamodules.digits import digits, tuning

HERE = Path(__file__).parent  # in a notebook: the folder of my_discrepancies.py
OUT = Path(os.environ.get("OUT", "runs/add_discrepancy")).resolve()
LIMIT = os.environ.get("LIMIT", "200")  # images of each set
NAMES = ["maps", "my_discrepancies.overlap", "my_discrepancies.BlurredOverlap"]

detector = diffguard_pl.load("fast/digits_ldm", discrepancies=NAMES)
known, unknown = (
    detector(data.images[:: max(1, len(data) // 40)]).scores for data in (digits("val"), tuning())
)
for name in detector.discrepancies.names:
    truth = cat([ones(len(known[name])), zeros(len(unknown[name]))]).long()
    print(
        f"{name}: AUROC {100 * binary_auroc(cat([known[name], unknown[name]]), truth):.2f} on a few images"
    )

# %% In a config: what differs from a shipped one
OUT.mkdir(parents=True, exist_ok=True)
config = OUT / "overlap.yaml"
config.write_text(yaml.safe_dump({"base": "fast/digits_ldm", "model": {"discrepancies": NAMES}}))
command = [
    sys.executable,
    "-m",
    "diffguard_pl.test",
    "--config",
    str(config),
    "--data.split",
    "tuning",
    "--data.limit",
    LIMIT,
]
finds_mine = os.environ | {
    "PYTHONPATH": str(HERE)
}  # not needed where the command is started from the module's folder
subprocess.run(command, cwd=OUT, env=finds_mine, check=True)

# %% Which one is it? On this split, for these models; the intervals say how sure that is
file = max(OUT.glob("runs/*/*/metrics.csv"), key=lambda file: file.stat().st_mtime)
table = (
    pd.read_csv(file)
    .set_index("score")
    .loc[detector.discrepancies.names, ["auroc", "auroc_low", "auroc_high", "fpr95"]]
)
print((100 * table).round(2))
print(f"the best on the tuning split: {table['auroc'].idxmax()}")
