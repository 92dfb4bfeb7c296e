"""Use a discrepancy of your own, by its import path: in Python, and in a config.

`my_discrepancies.py` beside this file holds a function of two `Seen` and a class. They are compared
with `maps` on the tuning split of the digits, validation digits against chimeras and symbols, and
do not beat it. Keep the test datasets, 4 and 9 among them, for the discrepancy that you choose.

For your own: write a function of two `Seen` (images, and the classifier's logits, features and
feature maps of them) that returns a number for each pair, higher = more alike, and name it
`package.module.function`. Python must find the module: it is installed, or lies in the folder from
which you start.

    python examples/add_discrepancy.py
"""

# %% In Python
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

import diffguard_pl
from diffguard_pl.datamodules.digits import digits, tuning
from diffguard_pl.metrics.detection import auroc

HERE = Path(__file__).parent  # in a notebook: the folder of my_discrepancies.py
OUT = Path(os.environ.get("OUT", "runs/add_discrepancy")).resolve()
LIMIT = os.environ.get("LIMIT", "200")  # images of each dataset
NAMES = ["maps", "my_discrepancies.overlap", "my_discrepancies.BlurredOverlap"]

model = diffguard_pl.load("fast/digits_ldm", discrepancies=NAMES)
known = model(digits("val").images[::5]).scores
unknown = model(tuning().images[::5]).scores
for name in model.discrepancies.names:
    print(f"{name}: AUROC {100 * auroc(known[name], unknown[name]):.2f} on a few images")

# %% In a config: only what differs from a shipped one
OUT.mkdir(parents=True, exist_ok=True)
config = OUT / "overlap.yaml"
config.write_text(yaml.safe_dump({"base": "fast/digits_ldm", "model": {"discrepancies": NAMES}}))
command = [sys.executable, "-m", "diffguard_pl.test", "--config", str(config)]
command += ["--data.split", "tuning", "--data.limit", LIMIT]
# PYTHONPATH is not needed if the command is started from the module's folder.
subprocess.run(command, cwd=OUT, env=os.environ | {"PYTHONPATH": str(HERE)}, check=True)

# %% Which one is best? On this split, for these models; the intervals say how sure that is
file = max(OUT.glob("runs/*/*/metrics.csv"), key=lambda file: file.stat().st_mtime)
columns = ["auroc", "auroc_low", "auroc_high", "fpr95"]
table = pd.read_csv(file).set_index("score").loc[model.discrepancies.names, columns]
print((100 * table).round(2))
print(f"the best on the tuning split: {table['auroc'].idxmax()}")
