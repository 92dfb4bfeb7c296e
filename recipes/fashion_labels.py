"""Measure what the diffusion model knows of the labels: ``python recipes/fashion_labels.py``.

Semantic mismatch needs a diffusion model that knows the classes: under a wrong label an image has
to come back as something else. On each class split of Fashion-MNIST this reconstructs known images
and images of the held-out classes under each of the eight labels, with the settings of
``fashion_ldm`` (what has been measured before is read from ``--out``). It prints two tables in
Markdown, in percent:

- how often the label under which an image fits best is the true one, by discrepancy, by the label's
  pull, and by the error of the predicted noise (a diffusion classifier: Li et al., ICCV 2023),
  beside the accuracy of the classifier;
- the AUROC of known images under the predicted label against the same images under the classifier's
  second choice and under any other label, beside that against images of the held-out classes, as it
  is, less the mean over the other labels, and less that of the second choice.

With ``--split tuning``, images of the tuning dataset take the place of the held-out classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from studies import known_and_near, measured_splits, settings_of
from torch import Tensor

import diffguard_pl
from diffguard_pl.datamodules.fashion import FashionDataModule
from diffguard_pl.metrics.detection import auroc
from diffguard_pl.scores.path.base import MeasuredScore, Subject

KNOWN, OTHER = 160, 80
"""Number of known images, and of images of each other dataset, evenly spaced."""
LABELS = 8
ERROR = "eps_error"
DISCREPANCIES = ("gmsd", "latents", "maps", "features", "kl", "l2")
SCORES = (*DISCREPANCIES, "label_pull", ERROR)


@dataclass(frozen=True)
class NoiseError(MeasuredScore):
    """Negative mean squared error of the noise predicted under the label, at several levels."""

    name = ERROR
    times = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    repeats = 2

    @property
    def nfe(self) -> int:
        return len(self.times) * self.repeats

    def measure(self, subject: Subject) -> Tensor:
        denoiser, errors = subject.denoiser, []
        for draw in range(self.nfe):
            t = denoiser.timestep(self.times[draw % len(self.times)])
            noisy, noise = denoiser.noised(subject.x, t, draw), denoiser.noise(subject.x, draw)
            eps = denoiser.eps(noisy, t, subject.labels)
            errors.append((eps - noise).square().flatten(1).mean(dim=1))
        return torch.stack(errors, dim=1)

    def score(self, features: Tensor, fitted: object) -> Tensor:
        return -features.mean(dim=1)


class Measured(NamedTuple):
    """Images under each label.

    Attributes:
        scores: [K, N, 8] of :data:`SCORES`, higher = fits the label better.
        logits: [N, 8] of the classifier.
        labels: [N] true labels; -1 where the class is held out.
        datasets: [N] index of the dataset of each image, 0 for the known ones.
    """

    scores: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    datasets: np.ndarray


def measure(class_split: int, split: str, weights: Path) -> dict[str, np.ndarray]:
    """Reconstruct images of a class split under each label; return :class:`Measured` as a dict."""
    diffguard = diffguard_pl.load(
        "fashion_ldm",
        discrepancies=list(DISCREPANCIES),
        path_scores={"label_pull": None, "fashion_labels.NoiseError": None},
        **settings_of("fashion_ldm", class_split, weights),
    )
    data = FashionDataModule(split=split, class_split=class_split)
    chosen = known_and_near(data, KNOWN, OTHER)
    images = torch.cat([batch["image"] for batch in chosen])
    datasets = np.repeat(np.arange(len(chosen)), [len(batch["image"]) for batch in chosen])

    logits = diffguard.classify(images).view.logits
    by_label = []
    for label in range(LABELS):
        print(f"class split {class_split}, {split}: label {label}", flush=True)
        found = diffguard(images, torch.full((len(images),), label)).scores
        by_label.append(torch.stack([found[name] for name in SCORES]))
    labels = np.concatenate([batch["label"] for batch in chosen])
    scores = torch.stack(by_label, dim=2).numpy()
    return Measured(scores, logits.numpy(), labels, datasets)._asdict()


def accuracies(of: Measured) -> list[float]:
    """Return how often the best label is the true one: of the classifier, and of each score."""
    known = of.datasets == 0
    chosen = [of.logits.argmax(1), *of.scores.argmax(2)]
    return [float((best == of.labels)[known].mean()) for best in chosen]


def contrasts(of: Measured) -> np.ndarray:
    """Return the AUROC [K, 5] of each score for known images under the predicted label.

    Against: the same images under the second choice; the same under any other label; the other
    datasets, as it is; less the mean over the other labels; less that of the second choice.
    """
    order = of.logits.argsort(1)[:, ::-1]
    known = of.datasets == 0
    rows = []
    for score in of.scores:
        ranked = np.take_along_axis(score, order, 1)
        predicted, second, rest = ranked[:, 0], ranked[:, 1], ranked[:, 1:].mean(1)
        near = [
            np.mean([auroc(s[known], s[of.datasets == d]) for d in range(1, of.datasets.max() + 1)])
            for s in (predicted, predicted - rest, predicted - second)
        ]
        under_wrong = [auroc(predicted[known], w[known].ravel()) for w in (second, ranked[:, 1:])]
        rows.append([*under_wrong, *near])
    return np.array(rows)


def print_table(first: str, columns: Sequence[str], rows: dict[str, np.ndarray]) -> None:
    print(f"\n| {first} | {' | '.join(columns)} |")
    print("|---" + "|---:" * len(columns) + "|")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")


def main() -> None:
    splits, kept = measured_splits(__doc__, "fashion_labels", measure)
    found = [Measured(**of) for of in kept]
    correct = np.array([accuracies(of) for of in found])
    columns = [*(f"class split {n}" for n in splits), "mean"]
    rows = {
        name: np.append(values, values.mean())
        for name, values in zip(("classifier", *SCORES), correct.T, strict=True)
    }
    print_table("best label is the true one, by", columns, rows)

    mean = np.mean([contrasts(of) for of in found], axis=0)
    columns = [
        "under the second label",
        "under any other label",
        "near",
        "near, less the other labels",
        "near, less the second label",
    ]
    print_table("known images against", columns, dict(zip(SCORES, mean, strict=True)))


if __name__ == "__main__":
    main()
