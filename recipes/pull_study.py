"""Study the label's pull: ``python recipes/pull_study.py``.

Takes the pull of images of both embedded benchmarks at every step to noise and back, under the
predicted label (what has been taken before is read from ``--out``), and makes a score of it in many
ways: by step, of the inversion or of the guided denoising, mean over steps, with or without
logarithm, relative to the noise, as an angle, weighted by the schedule, and two-sided, with the
density of validation images. Prints a table in Markdown for each benchmark: AUROC in percent on
tuning images, on near and on far OOD, mean over the class splits. Below it, for each class split,
what is the best on tuning images, and its AUROC on test images beside that of the default.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from studies import SPLITS, evenly, measure_once, settings_of, study_parser
from torch.utils.data import Dataset

import diffguard_pl
from diffguard_pl.datamodules.base import OODData
from diffguard_pl.datamodules.digits import DigitsDataModule
from diffguard_pl.datamodules.fashion import FashionDataModule
from diffguard_pl.diffusion.path import Path as Noise
from diffguard_pl.engine.paths import paths
from diffguard_pl.errors import InputError
from diffguard_pl.metrics.detection import auroc
from diffguard_pl.scores.path.label_pull import LabelPull

KNOWN, OTHER = 200, 100
"""Number of known images, evenly spaced, and of images of each other dataset; 200 for tuning."""
BATCH = 100
GROUPS = ("tuning", "near", "far")
DEFAULT = "pull, t = 0.1"

FORMS = {
    "relative": {"statistic": "relative"},
    "angle": {"statistic": "cosine"},
    "denoising": {"at": "denoising"},
}
"""Settings of the forms that are scored at every step, by name."""
Scorer = Callable[[Noise, Noise], np.ndarray]
"""Score [N] of images from their path, and from that of validation images."""


def benchmarks(weights: Path) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """Yield name, class split, config and settings of the model."""
    yield "digits", 1, "digits_ldm", {}
    for split in SPLITS:
        yield "fashion", split, "fashion_ldm", settings_of("fashion_ldm", split, weights)


def data_of(benchmark: str, class_split: int, split: str) -> OODData:
    if benchmark == "digits":
        return DigitsDataModule(split=split)
    return FashionDataModule(split=split, class_split=class_split)


def sources_of(benchmark: str, class_split: int) -> dict[str, tuple[Dataset, int]]:
    """Return the datasets with the number of images to take, by group and name."""
    test, tuning = (data_of(benchmark, class_split, split) for split in ("test", "tuning"))
    calibration = test.calibration_source()
    assert calibration is not None
    found: dict[str, tuple[Dataset, int]] = {"calibration": (calibration, KNOWN)}
    for data in (test, tuning):
        known, *others = data.test_sources().items()
        found[f"{data.split} known"] = known[1], KNOWN
        for name, source in others:
            group = data.groups[name]
            found[f"{group} {name}"] = source, KNOWN if group == "tuning" else OTHER
    return found


def measure(
    benchmark: str, class_split: int, config: str, settings: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Take the paths of all datasets, their values by dataset, and the schedule."""
    diffguard = diffguard_pl.load(config, discrepancies=["l2"], **settings)
    schedule, train_steps = diffguard.schedule, len(diffguard.backbone.alpha_bar)
    times = (schedule.timesteps / (train_steps - 1)).tolist()
    diffguard = diffguard_pl.load(
        config, discrepancies=["l2"], path_scores={"label_pull": {"times": times}}, **settings
    )
    level = diffguard.backbone.alpha_bar[schedule.timesteps.long()]
    kept = {"times": np.array(times), "alpha_bar": level.numpy()}
    for name, (source, count) in sources_of(benchmark, class_split).items():
        print(f"{benchmark}, class split {class_split}: {name}", flush=True)
        images = evenly(source, count)["image"]
        found = [of.path for of in paths(diffguard, images.split(BATCH), True, ())]
        kept[name] = torch.cat([path.values for path in found if path]).numpy()
    return kept


def form(steps: Sequence[int], **settings: str) -> Scorer:
    """Score as the label's pull does at some steps, fitted to the validation images."""
    of_steps = replace(LabelPull(**settings), steps=tuple(steps))  # type: ignore[arg-type]

    def score(path: Noise, calibration: Noise) -> np.ndarray:
        fitted = of_steps.fit(of_steps.features(calibration))
        return of_steps.score(of_steps.features(path), fitted).numpy()

    return score


def total(scorers: Sequence[Scorer]) -> Scorer:
    """Score by a sum of scores, which are logarithms."""

    def score(path: Noise, calibration: Noise) -> np.ndarray:
        return np.sum([scorer(path, calibration) for scorer in scorers], axis=0)

    return score


def weighted(steps: int, weights: np.ndarray) -> Scorer:
    """Score by a weighted mean of the pull itself over the first inversion steps."""

    def score(path: Noise, _: Noise) -> np.ndarray:
        return -(path.inversion("pull2").numpy()[:, :steps] * weights[:steps]).mean(1)

    return score


def scorers(times: np.ndarray, alpha_bar: np.ndarray) -> dict[str, Scorer]:
    """Return the ways to score, by name."""
    default = int(abs(times - 0.1).argmin())
    named = {f"t = {time:.1f}": step for step, time in enumerate(times)}
    found = {DEFAULT: form([default])}
    found |= {f"pull, {t}": form([step]) for t, step in named.items() if step != default}
    found |= {f"mean of the first {n} steps": form(range(n)) for n in (2, 3, 5)}
    for name, settings in FORMS.items():
        found |= {f"{name}, {t}": form([step], **settings) for t, step in named.items()}
    for t, u in (("t = 0.1", "t = 0.1"), ("t = 0.3", "t = 0.7"), ("t = 0.3", "t = 0.8")):
        both = total([form([named[t]]), form([named[u]], statistic="cosine")])
        found[f"pull, {t}, and angle, {u}"] = both
    found["first 5 steps, no logarithm"] = weighted(5, np.ones(5))
    found["the same, times 1 / alpha_bar - 1"] = weighted(5, 1 / alpha_bar - 1)
    found["two-sided, t = 0.1"] = form([default], sides="two")
    found["two-sided, first 5 steps"] = form(range(5), sides="two")
    return found


def results(of: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Return the AUROC of each way to score by group."""
    times, alpha_bar = of.pop("times"), of.pop("alpha_bar")
    datasets = {name: Noise(torch.from_numpy(values), 1) for name, values in of.items()}
    found: dict[str, list[float]] = {}
    for name, scorer in scorers(times, alpha_bar).items():
        scores = {d: scorer(path, datasets["calibration"]) for d, path in datasets.items()}
        found[name] = []
        for group in GROUPS:
            known = scores["tuning known" if group == "tuning" else "test known"]
            others = [d for d in scores if d.startswith(f"{group} ") and d != f"{group} known"]
            found[name].append(100 * float(np.mean([auroc(known, scores[d]) for d in others])))
    return found


def print_tables(benchmark: str, found: dict[int, dict[str, list[float]]]) -> None:
    print(f"\n| {benchmark} | {' | '.join(GROUPS)} |")
    print("|---|---:|---:|---:|")
    for name in next(iter(found.values())):
        values = np.mean([of[name] for of in found.values()], axis=0)
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |")
    print("\n| class split | best on tuning | tuning | near | far | default: tuning | near | far |")
    print("|---:|---" + "|---:" * 6 + "|")
    for split, of in found.items():
        best = max(of, key=lambda name: of[name][0])
        values = " | ".join(f"{value:.1f}" for value in (*of[best], *of[DEFAULT]))
        print(f"| {split} | {best} | {values} |")


def main() -> None:
    parser = study_parser(__doc__, "pull_study")
    arguments = parser.parse_args()
    found: dict[str, dict[int, dict[str, list[float]]]] = {}
    for benchmark, split, *of in benchmarks(arguments.weights):
        file = arguments.out / f"{benchmark}_{split}.npz"
        try:
            kept = measure_once(file, partial(measure, benchmark, split, *of))
        except InputError as error:
            sys.exit(f"error: {error}")
        found.setdefault(benchmark, {})[split] = results(kept)
    for benchmark, of_benchmark in found.items():
        print_tables(benchmark, of_benchmark)


if __name__ == "__main__":
    main()
