"""Try ideas for near OOD on Fashion-MNIST: ``python recipes/fashion_ideas.py``.

On each class split, ``fashion_ldm`` reconstructs known images, images of the held-out classes and
calibration images (what has been measured before is read from ``--out``). Four ideas are made of
that:

- anchored: comparison with the decoded latents of the input, where the inversion starts, in place
  of the input;
- per class: the score less its median among calibration images of the predicted class, divided by
  their interquartile range; or its rank among them;
- two scales: mean of the scores at the config's scale and at 1;
- UNet features: cosine similarity of what the first block of the UNet makes of the latents of
  input and reconstruction, without noise and without a label.

Prints a table in Markdown: AUROC of known images against each other dataset in percent, mean over
these and over the class splits; in brackets the difference to the score as it is, with the 95 %
interval of a paired bootstrap over images; the number of class splits on which that interval is
above zero. With ``--split tuning``, images of the tuning dataset take the place of the held-out
classes.
"""

from pathlib import Path

import numpy as np
import torch
from studies import (
    calibrated_by_class,
    evenly,
    image_weights,
    interval,
    known_and_near,
    mean_auroc,
    measured_splits,
    settings_of,
)
from torch import Tensor

import diffguard_pl
from diffguard_pl.datamodules.fashion import FashionDataModule
from diffguard_pl.diffguard import DiffGuard
from diffguard_pl.scores.conformal import scale
from diffguard_pl.scores.discrepancies import Seen

KNOWN, OTHER, CALIBRATING = 200, 100, 400
"""Number of known images, of images of each other dataset, and of calibration images, evenly
spaced."""
DISCREPANCIES = ("gmsd", "latents", "maps", "features", "kl", "l2")
MSP = "msp"
UNET = "UNet features"
ANCHORED, SCALE_1 = "anchored: ", "scale 1: "
LABELS = "labels"


def measure(class_split: int, split: str, weights: Path) -> dict[str, np.ndarray]:
    """Return the scores [N] of all images by name, their predicted labels and their datasets."""
    settings = dict(
        settings_of("fashion_ldm", class_split, weights),
        discrepancies=list(DISCREPANCIES),
        baselines=[MSP],
    )
    data = FashionDataModule(split=split, class_split=class_split)
    images, members, paths = images_of(data)

    print(f"class split {class_split}, {split}: {len(images)} images", flush=True)
    diffguard = diffguard_pl.load("fashion_ldm", **settings)
    detection = diffguard(images)
    scores = dict(detection.scores)
    scores |= prefixed(ANCHORED, anchored(diffguard, images, detection.reconstructions))
    scores[UNET] = unet_similarity(diffguard, images, detection.reconstructions)

    print(f"class split {class_split}, {split}: scale 1", flush=True)
    diffguard = diffguard_pl.load("fashion_ldm", **settings, guidance__init_args__scale=1.0)
    scores |= prefixed(SCALE_1, diffguard(images).scores)
    found = {name: values.numpy() for name, values in scores.items()}
    return found | {LABELS: detection.labels.numpy(), "members": members, "paths": paths}


def images_of(data: FashionDataModule) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return images [N, 3, 32, 32], the dataset of each, and what identifies them.

    The dataset is 0 for the known images, and -1 for calibration images.
    """
    chosen = [evenly(data.calibration_source(), CALIBRATING), *known_and_near(data, KNOWN, OTHER)]
    members = np.repeat(np.arange(len(chosen)) - 1, [len(batch["image"]) for batch in chosen])
    paths = np.concatenate([batch["path"] for batch in chosen])
    return torch.cat([batch["image"] for batch in chosen]), members, paths


def prefixed(prefix: str, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: values for name, values in scores.items()}


def anchored(diffguard: DiffGuard, images: Tensor, guided: Tensor) -> dict[str, Tensor]:
    """Compare reconstructions [N, 3, H, W] with the decoded latents of the images."""
    seen = []
    for shown in (diffguard.decode_images(diffguard.encode(images)), guided):
        view = diffguard.classifier.view(shown)
        seen.append(Seen.of(shown, view, diffguard.encode(shown)))
    return diffguard.discrepancies(*seen)


@torch.no_grad()
def unet_similarity(diffguard: DiffGuard, images: Tensor, guided: Tensor) -> Tensor:
    """Return the cosine similarity [N] of the first block's features, mean over the pixels."""
    maps: list[Tensor] = []
    unet = diffguard.backbone.unet
    hook = unet.down_blocks[0].register_forward_hook(lambda _, __, output: maps.append(output[0]))
    t = torch.zeros(len(images), dtype=torch.long)
    no_label = torch.full_like(t, diffguard.backbone.null_label)
    for shown in (images, guided):
        diffguard.backbone.eps(diffguard.encode(shown), t, no_label)
    hook.remove()
    return torch.cosine_similarity(*maps, dim=1).flatten(1).mean(1)


def ideas(found: dict[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """Return the scores [N] by idea and name; the idea is empty for the scores as they are."""
    rows = {("", name): found[name] for name in (MSP, *DISCREPANCIES)}
    rows[UNET, "latents"] = found[UNET]
    for name in DISCREPANCIES:
        rows["two scales", name] = (found[name] + found[SCALE_1 + name]) / 2
        if name != "latents":  # it compares with the inversion's start as it is
            rows["anchored", name] = found[ANCHORED + name]
    for name in (MSP, *DISCREPANCIES):
        of_class = found[name], found[LABELS], found["members"] == -1
        rows["per class", name] = calibrated_by_class(*of_class, standardised)
        rows["per class, rank", name] = calibrated_by_class(*of_class, scale)
    return rows


def standardised(reference: np.ndarray, values: np.ndarray) -> np.ndarray:
    low, median, high = np.percentile(reference, [25, 50, 75])
    return (values - median) / (high - low)


def main() -> None:
    _, found = measured_splits(__doc__, "fashion_ideas", measure)
    weights = image_weights([of["paths"] for of in found])
    splits = [
        {key: mean_auroc(values, of["members"], drawn) for key, values in ideas(of).items()}
        for of, drawn in zip(found, weights, strict=True)
    ]
    print("\n| score | idea | AUROC | minus the score as it is | above it |")
    print("|---|---|---:|---:|---:|")
    for idea, score in sorted(splits[0], key=lambda key: key[1]):
        auroc = np.mean([of[idea, score][0] for of in splits])
        cells = [score, idea or "as it is", f"{auroc:.1f}"]
        if idea:
            gains = np.stack([of[idea, score] - of["", score] for of in splits])
            above = np.percentile(gains[:, 1:], 2.5, axis=1) > 0
            cells += [interval(gains.mean(axis=0)), f"{above.sum()} of {len(splits)}"]
        else:
            cells += ["", ""]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
