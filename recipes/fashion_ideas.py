"""Try ideas for near OOD on Fashion-MNIST: ``python recipes/fashion_ideas.py``.

On each class split, ``fashion_ldm`` reconstructs known images, images of the held-out classes and
calibration images (what has been measured before is read from ``--out``). Four ideas are made of
that:

- anchored: comparison with the decoded latents of the input, where the inversion starts, in place
  of the input;
- per class: the score less its median among calibration images of the predicted class, divided by
  their interquartile range;
- two scales: mean of the scores at the config's scale and at 1;
- UNet features: cosine similarity of what the first block of the UNet makes of the latents of
  input and reconstruction, without noise and without a label.

Prints a table in Markdown: AUROC of known images against each other dataset in percent, mean over
these and over the class splits; in brackets the difference to the score as it is, with the 95 %
interval of a paired bootstrap over images; the number of class splits on which that interval is
above zero. With ``--split tuning``, images of the tuning dataset take the place of the held-out
classes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from studies import add_splits, evenly, measure_once, settings_of, study_parser
from torch import Tensor

import diffguard_pl
from diffguard_pl.datamodules.fashion import FashionDataModule
from diffguard_pl.diffguard import DiffGuard
from diffguard_pl.errors import InputError
from diffguard_pl.metrics.bootstrap import replicates
from diffguard_pl.metrics.table import ScoreTable, result_rows
from diffguard_pl.names import MEAN
from diffguard_pl.scores.discrepancies import Seen

KNOWN, OTHER, CALIBRATING = 240, 120, 400
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
    images, members = images_of(FashionDataModule(split=split, class_split=class_split))

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
    return found | {LABELS: detection.labels.numpy(), "members": members}


def images_of(data: FashionDataModule) -> tuple[Tensor, np.ndarray]:
    """Return images [N, 3, 32, 32] and the index of the dataset of each: 0 for the known ones, -1
    for calibration images."""
    sources = data.test_sources()
    near = [name for name in sources if data.groups.get(name) in ("near", "tuning")]
    chosen = [evenly(data.calibration_source(), CALIBRATING)[0]]
    chosen += [evenly(next(iter(sources.values())), KNOWN)[0]]
    chosen += [evenly(sources[name], OTHER)[0] for name in near]
    return torch.cat(chosen), np.repeat(np.arange(-1, 1 + len(near)), list(map(len, chosen)))


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


def measured(class_split: int, split: str, weights: Path, out: Path) -> dict[str, np.ndarray]:
    """Read what has been measured on a class split, or measure and keep it."""
    file = out / f"{split}_{class_split}.npz"
    return measure_once(file, lambda: measure(class_split, split, weights))


def ideas(found: dict[str, np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
    """Return the scores [N] by idea and name; the idea is empty for the scores as they are."""
    rows = {("", name): found[name] for name in (MSP, *DISCREPANCIES)}
    rows[UNET, "latents"] = found[UNET]
    for name in DISCREPANCIES:
        rows["two scales", name] = (found[name] + found[SCALE_1 + name]) / 2
        if name != "latents":  # it compares with the inversion's start as it is
            rows["anchored", name] = found[ANCHORED + name]
    for name in (MSP, *DISCREPANCIES):
        rows["per class", name] = per_class(found, name)
    return rows


def per_class(found: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return a score [N] less its median among calibration images of the predicted class, divided
    by their interquartile range."""
    values, standardised = found[name], np.empty_like(found[name])
    calibration = found["members"] == -1
    for label in np.unique(found[LABELS]):
        of_class = found[LABELS] == label
        low, median, high = np.percentile(values[of_class & calibration], [25, 50, 75])
        standardised[of_class] = (values[of_class] - median) / (high - low)
    return standardised


def drawn(found: dict[str, np.ndarray], seed: int) -> dict[tuple[str, str], np.ndarray]:
    """Return the mean AUROC of each idea over the other datasets in percent [1 + R]: of the images,
    and of each draw of a bootstrap."""
    rows, members = ideas(found), found["members"]
    names = [f"dataset_{d}" for d in range(members.max() + 1)]
    table = ScoreTable(
        scores=[": ".join(key) for key in rows],
        datasets=names,
        groups=dict.fromkeys(names[1:], "other"),
        values=np.stack([values[members >= 0] for values in rows.values()], axis=1).astype(float),
        members=members[members >= 0],
    )
    draws = replicates(table, seed=seed)
    reached = {row.score: row for row in result_rows(table) if row.dataset == MEAN}
    return {
        key: 100 * np.append(reached[name].metrics.auroc, draws["other", MEAN, name][:, 0])
        for key, name in zip(rows, table.scores, strict=True)
    }


def main() -> None:
    parser = study_parser(__doc__, "fashion_ideas")
    parser.add_argument("--split", choices=("test", "tuning"), default="test")
    add_splits(parser)
    given = parser.parse_args()
    try:
        found = [measured(n, given.split, given.weights, given.out) for n in given.splits]
    except InputError as error:
        sys.exit(f"error: {error}")

    splits = [drawn(of, seed) for seed, of in enumerate(found)]
    print("\n| score | idea | AUROC | minus the score as it is | above it |")
    print("|---|---|---:|---:|---:|")
    for idea, score in sorted(splits[0], key=lambda key: key[1]):
        auroc = np.mean([of[idea, score][0] for of in splits])
        cells = [score, idea or "as it is", f"{auroc:.1f}"]
        if idea:
            gains = np.stack([of[idea, score] - of["", score] for of in splits])
            lower = np.percentile(gains[:, 1:], 2.5, axis=1)
            mean = gains.mean(axis=0)
            low, high = np.percentile(mean[1:], [2.5, 97.5])
            above = f"{(lower > 0).sum()} of {len(splits)}"
            cells += [f"{mean[0]:+.1f} ({low:.1f} to {high:.1f})", above]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
