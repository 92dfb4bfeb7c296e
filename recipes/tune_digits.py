"""How the settings of the embedded benchmark were chosen: `python recipes/tune_digits.py ldm` (or gdm).

Every combination is scored on the validation digits against the ``tuning`` set (chimeras of validation digits, rendered symbols),
neither of which is in a test table. Prints the AUROC of each discrepancy, and writes it to ``recipes/tuning_ldm.csv``.
"""

import csv
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

import diffguard_pl
from diffguard_pl.datamodules.digits import DigitsDataModule
from diffguard_pl.metrics.detection import auroc
from diffguard_pl.scores.baselines.collection import logit_baselines

NAMES = ["features", "maps", "kl", "logits", "ssim", "gmsd", "mdsi", "fsim", "l2"]
IMAGES = 200
"""Of each of the two sets."""


def ldm_grid() -> Iterator[dict[str, Any]]:
    settings = [
        *product((10,), (1.5, 3.0, 5.0, 8.0), (None,)),
        *product((20,), (3.0, 5.0), (None,)),
        *product((10,), (3.0,), (0.1, 0.3)),
    ]
    for steps, scale, cam_cut in settings:
        yield {"steps": steps, "guidance__scale": scale, "guidance__cam_cut": cam_cut}


def gdm_grid() -> Iterator[dict[str, Any]]:
    settings = [
        *product((52.0, 53.0), (5.0, 20.0, 80.0), (0,), ("unguided",)),
        *product((52.0,), (20.0,), (4,), ("unguided",)),
        *product((50.0, 52.0), (20.0,), (0,), ("input",)),
    ]
    for psnr, scale, cutouts, compare_to in settings:
        yield {
            "early_stop": {"psnr": psnr},
            "guidance__scale": scale,
            "guidance__cutouts": cutouts,
            "compare_to": compare_to,
        }


def main(family: str) -> None:
    sets = list(DigitsDataModule(split="tuning", limit=IMAGES).datasets().values())
    images = torch.stack(
        [item["image"] for data in sets for item in map(data.__getitem__, range(len(data)))]
    )
    is_ind = torch.arange(len(images)) < len(sets[0])
    with (Path(__file__).parent / f"tuning_{family}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        for i, settings in enumerate({"ldm": ldm_grid, "gdm": gdm_grid}[family]()):
            detector = diffguard_pl.load(f"digits_{family}", discrepancies=NAMES, **settings)
            began = time.monotonic()
            detections = [detector(batch) for batch in images.split(128)]
            seconds = time.monotonic() - began
            scores = {name: torch.cat([d.scores[name] for d in detections]) for name in NAMES}
            if i == 0:
                writer.writerow([*settings, "images/s", *NAMES])
                alone = logit_baselines(torch.cat([d.prediction.view.logits for d in detections]))
                print(
                    {name: round(auroc(s[is_ind], s[~is_ind]), 4) for name, s in alone.items()},
                    flush=True,
                )
            row = [round(auroc(s[is_ind], s[~is_ind]), 4) for s in scores.values()]
            stop = torch.cat([d.stop_index for d in detections]).float()
            writer.writerow([*settings.values(), round(len(images) / seconds, 1), *row])
            print(
                settings,
                f"{len(images) / seconds:.1f} images/s, stop {stop[is_ind].mean():.1f} {stop[~is_ind].mean():.1f}",
                dict(zip(NAMES, row, strict=True)),
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1])
