"""Draw docs/images/failures_digits.png and failures_fashion.png: where DiffGuard wins and fails.

``python docs/figures/failures_picture.py [digits] [fashion]``: half a minute each on two CPU cores.
Every image of a test set gets one of four verdicts: with the thresholds that accept 95 % of the
known images, DiffGuard's primary score and the classifier's maximum softmax probability each
accept or reject it. The pictures are evenly spaced among the images of a verdict, not selected.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

import diffguard_pl
from diffguard_pl import DiffGuard
from diffguard_pl.config import load_data
from diffguard_pl.datamodules.base import spread
from diffguard_pl.metrics.detection import threshold_at_tpr
from diffguard_pl.report.pictures import Picture, draw_grid, to_image

FOLDER = Path(__file__).parents[1] / "images"
COUNT = 150
"""Number of images of each dataset, evenly spaced."""
COLUMNS = 6
VERDICTS = {
    "DiffGuard alone": (False, True),
    "neither": (True, True),
    "MSP alone": (True, False),
}
"""Whether DiffGuard, and whether MSP, accepts an image, by who rejects it."""


def detected(model: DiffGuard, source: Dataset) -> dict[str, Tensor]:
    """Return images, reconstructions, labels and both scores of a dataset."""
    some = spread(source, COUNT)
    images = default_collate([some[i]["image"] for i in range(len(some))])
    detection = model(images)
    return {
        "image": images,
        "reconstruction": detection.reconstructions,
        "label": detection.labels,
        "score": detection.scores[model.discrepancies.names[0]],
        "msp": detection.scores["msp"],
    }


def strip(found: dict[str, Tensor], chosen: Tensor, names: list[str]) -> list[Picture]:
    """Return pictures of some of the images, evenly spaced among the chosen ones."""
    indices = chosen.nonzero().flatten()
    places = np.linspace(0, len(indices) - 1, min(COLUMNS, len(indices))).round()
    return [
        Picture(
            [to_image(found["image"][i]), to_image(found["reconstruction"][i])],
            f"{names[found['label'][i]]} {float(found['score'][i]):.2f}",
        )
        for i in indices[places.astype(int)].tolist()
    ]


def draw(benchmark: str) -> None:
    """Draw the verdicts on all datasets of a benchmark."""
    model, data = diffguard_pl.load(f"{benchmark}_ldm"), load_data([f"{benchmark}_ldm"])
    names = list(data.class_names or model.classifier.class_names or [])
    found = {name: detected(model, source) for name, source in data.test_sources().items()}
    known = found[next(iter(found))]
    thresholds = {of: threshold_at_tpr(known[of].numpy()) for of in ("score", "msp")}

    datasets: dict[str, dict[str, list[Picture]]] = {}
    for name, of in found.items():
        accepts = {score: of[score] >= limit for score, limit in thresholds.items()}
        strips, counts = {}, []
        for verdict, (by_score, by_msp) in VERDICTS.items():
            chosen = (accepts["score"] == by_score) & (accepts["msp"] == by_msp)
            counts.append(f"by {verdict} {int(chosen.sum())}")
            if chosen.any() and not (of is known and verdict == "neither"):
                strips[verdict] = strip(of, chosen, names)
        heading = f"{name} ({data.groups.get(name, 'known')}), {len(of['image'])} images; "
        datasets[f"{heading}rejected {', '.join(counts)}"] = strips
    title = f"{benchmark}_ldm: rejected by DiffGuard ({model.discrepancies.names[0]}) or by MSP"
    draw_grid(datasets, title, FOLDER / f"failures_{benchmark}.png", cell=56)


if __name__ == "__main__":
    torch.manual_seed(0)
    for benchmark in sys.argv[1:] or ["digits", "fashion"]:
        draw(benchmark)
