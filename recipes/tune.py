"""Choose the settings of an embedded benchmark: ``python recipes/tune.py digits ldm``.

Scores every combination of settings on the validation images against the ``tuning`` dataset
(chimeras of validation images, rendered symbols, and the like); neither is in a test table. Prints
the AUROC of each discrepancy, and writes it to ``recipes/tuning_digits_ldm.csv``. Benchmarks are
digits and fashion (its first class split), pipelines are ldm and gdm.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffguard_pl
from diffguard_pl.datamodules.base import OODData
from diffguard_pl.datamodules.digits import DigitsDataModule
from diffguard_pl.datamodules.fashion import FashionDataModule
from diffguard_pl.metrics.detection import auroc
from diffguard_pl.scores.baselines.names import DEFAULT_BASELINES

NAMES = ["features", "maps", "kl", "logits", "ssim", "gmsd", "mdsi", "fsim", "l2"]
IMAGES = 200
"""Number of images of each of the two datasets."""
DATA: dict[str, type[OODData]] = {"digits": DigitsDataModule, "fashion": FashionDataModule}


def digits_ldm() -> Iterator[dict[str, Any]]:
    settings = [
        *product((10,), (1.5, 3.0, 5.0, 8.0), (None,)),
        *product((20,), (3.0, 5.0), (None,)),
        *product((10,), (3.0,), (0.1, 0.3)),
    ]
    for steps, scale, cam_cut in settings:
        yield {"steps": steps, "guidance__scale": scale, "guidance__cam_cut": cam_cut}


def digits_gdm() -> Iterator[dict[str, Any]]:
    return _gdm(
        *product((52.0, 53.0), (5.0, 20.0, 80.0), ("unguided",)),
        *product((50.0, 52.0), (20.0,), ("input",)),
    )


def fashion_gdm() -> Iterator[dict[str, Any]]:
    return _gdm(
        *product((52.0, 55.0, 58.0), (5.0, 20.0, 80.0), ("unguided",)),
        *product((61.0,), (20.0,), ("unguided",)),
        *product((55.0, 58.0), (20.0,), ("input",)),
    )


def _gdm(*settings: tuple[float, float, str]) -> Iterator[dict[str, Any]]:
    """Yield settings of PSNR threshold, scale and reference."""
    for psnr, scale, compare_to in settings:
        yield {
            "early_stop": {"psnr": psnr},
            "guidance__scale": scale,
            "compare_to": compare_to,
        }


def fashion_ldm() -> Iterator[dict[str, Any]]:
    # steps, scale, CAM cut, last steps of inversion and of denoising skipped, reference
    settings = [
        *product((10,), (1.0, 2.0, 3.0, 5.0, 8.0), (None,), (0,), (0,), ("input",)),
        *product((20,), (5.0,), (None,), (0,), (0,), ("input",)),
        *product((10,), (5.0,), (0.1, 0.3), (0,), (0,), ("input",)),
        *product((10,), (5.0,), (None,), (2, 4, 6), (0,), ("input",)),
        *product((10,), (5.0,), (None,), (0,), (0,), ("unguided",)),
        # 4 to 7 NFE
        *product((3,), (3.0, 5.0, 8.0), (None,), (1,), (1,), ("input",)),
        *product((3,), (5.0,), (None,), (1,), (0,), ("input",)),
        *product((4,), (5.0,), (None,), (1, 2), (1,), ("input",)),
        *product((5,), (5.0,), (None,), (2,), (1,), ("input",)),
    ]
    for steps, scale, cam_cut, stopped, skipped, compare_to in settings:
        yield {
            "steps": steps,
            "guidance__scale": scale,
            "guidance__cam_cut": cam_cut,
            # Inversion stops before the noise is reached, and denoising starts there.
            "early_stop_steps": stopped,
            "skip_first_steps": stopped,
            "skip_last_steps": skipped,
            "compare_to": compare_to,
        }


GRIDS = {
    "digits_ldm": digits_ldm,
    "digits_gdm": digits_gdm,
    "fashion_ldm": fashion_ldm,
    "fashion_gdm": fashion_gdm,
}


def main(benchmark: str, family: str) -> None:
    config = f"{benchmark}_{family}"
    names = [*NAMES, "latents"] if family == "ldm" else NAMES
    ind, tuning = DATA[benchmark](split="tuning", limit=IMAGES).datasets().values()
    items = [data[i] for data in (ind, tuning) for i in range(len(data))]
    images = torch.stack([item["image"] for item in items])
    is_ind = torch.arange(len(images)) < len(ind)

    def aurocs(scores: dict[str, Tensor]) -> dict[str, float]:
        return {name: round(auroc(of[is_ind], of[~is_ind]), 4) for name, of in scores.items()}

    with (Path(__file__).parent / f"tuning_{config}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        for i, settings in enumerate(GRIDS[config]()):
            model = diffguard_pl.load(config, discrepancies=names, **settings)
            start = time.monotonic()
            detections = [model(batch) for batch in images.split(128)]
            rate = len(images) / (time.monotonic() - start)
            scores = {
                name: torch.cat([detection.scores[name] for detection in detections])
                for name in model.score_names
            }
            found = aurocs(scores)
            if i == 0:
                writer.writerow([*settings, "images/s", *names])
                print({name: found[name] for name in DEFAULT_BASELINES}, flush=True)
            writer.writerow([*settings.values(), round(rate, 1), *(found[name] for name in names)])
            stop = torch.cat([detection.stop_index for detection in detections]).float()
            stops = f"stop {stop[is_ind].mean():.1f} {stop[~is_ind].mean():.1f}"
            print(settings, f"{rate:.1f} images/s, {stops}", found, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=DATA)
    parser.add_argument("family", choices=("ldm", "gdm"))
    main(**vars(parser.parse_args()))
