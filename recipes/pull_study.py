"""Study the label's pull: ``python recipes/pull_study.py``.

Takes the pull of images of both embedded benchmarks at every step to noise and back, under the
predicted label (what has been taken before is read from ``--out``), and makes a score of it in many
ways: by step, of the inversion or of the guided denoising, mean over steps, with or without
logarithm, relative to the noise, as an angle, weighted by the schedule, and two-sided, with the
density of validation images. Prints a table in Markdown for each benchmark: AUROC in percent on
tuning images, on near and on far OOD, mean over the class splits. Below it, for each class split,
what is the best on tuning images, and its AUROC on test images beside that of the default.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fashion_labels import evenly
from fashion_study import SPLITS, weights_of
from torch import Tensor
from torch.utils.data import Dataset

import diffguard_pl
from diffguard_pl.datamodules.base import OODData
from diffguard_pl.datamodules.digits import DigitsDataModule
from diffguard_pl.datamodules.fashion import FashionDataModule
from diffguard_pl.engine.paths import paths
from diffguard_pl.metrics.detection import auroc
from diffguard_pl.runs.files import atomic_write
from diffguard_pl.scores.path.label_pull import LabelPull

KNOWN, OTHER = 200, 100
"""Number of known images, evenly spaced, and of images of each other dataset; 200 for tuning."""
BATCH = 100
STATISTICS = ("pull2", "unguided2", "unguided_pull")
GROUPS = ("tuning", "near", "far")
DEFAULT = "pull, t = 0.1"

Statistics = dict[str, np.ndarray]
"""Statistics [N, S] by direction and name, such as ``inversion pull2``."""
Scorer = Callable[[Statistics, Statistics], np.ndarray]
"""Score [N] of images from their statistics, and from those of validation images."""


def benchmarks(weights: Path) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """Yield name, class split, config and settings of the model."""
    yield "digits", 1, "digits_ldm", {}
    for split in SPLITS:
        own = weights_of("fashion_ldm", split, weights)
        yield "fashion", split, "fashion_ldm", {n.replace(".", "__"): v for n, v in own.items()}


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


def measure(benchmark: str, class_split: int, config: str, settings: dict[str, Any]) -> Statistics:
    """Take the statistics of all datasets, by dataset, direction and name."""
    diffguard = diffguard_pl.load(config, discrepancies=["l2"], **settings)
    schedule, train_steps = diffguard.schedule, len(diffguard.backbone.alpha_bar)
    times = (schedule.timesteps / (train_steps - 1)).tolist()
    diffguard = diffguard_pl.load(
        config, discrepancies=["l2"], path_scores={"label_pull": {"times": times}}, **settings
    )
    level = diffguard.backbone.alpha_bar[schedule.timesteps.long()]
    kept: Statistics = {"times": np.array(times), "alpha_bar": level.numpy()}
    for name, (source, count) in sources_of(benchmark, class_split).items():
        print(f"{benchmark}, class split {class_split}: {name}", flush=True)
        images = evenly(source, min(count, len(source)))[0]  # type: ignore[arg-type]
        found = [of.path for of in paths(diffguard, images.split(BATCH), True, ())]
        for statistic in STATISTICS:
            for direction in ("inversion", "denoising"):
                of: list[Tensor] = [getattr(path, direction)(statistic) for path in found if path]
                kept[f"{name}/{direction} {statistic}"] = torch.cat(of).numpy()
    return kept


def measured(file: Path, *of: Any) -> Statistics:
    """Read what has been measured, or measure and keep it."""
    if not file.exists():
        found = measure(*of)
        with atomic_write(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **found)  # type: ignore[arg-type]
    with np.load(file) as kept:
        return dict(kept)


def pull(direction: str, steps: Any, divide: bool = False) -> Scorer:
    """Score by the mean logarithm of the pull, or of the pull over the noise."""

    def score(of: Statistics, _: Statistics) -> np.ndarray:
        values = of[f"{direction} pull2"][:, steps]
        if divide:
            values = values / of[f"{direction} unguided2"][:, steps]
        return -np.log(values).reshape(len(values), -1).mean(1)

    return score


def angle(direction: str, step: int) -> Scorer:
    """Score by the cosine between the pull and the noise without a label."""

    def score(of: Statistics, _: Statistics) -> np.ndarray:
        norms = np.sqrt(of[f"{direction} pull2"] * of[f"{direction} unguided2"])[:, step]
        return -np.log(1 + of[f"{direction} unguided_pull"][:, step] / norms)

    return score


def total(scorers: tuple[Scorer, ...]) -> Scorer:
    """Score by a sum of scores, which are logarithms."""

    def score(of: Statistics, calibration: Statistics) -> np.ndarray:
        return sum((scorer(of, calibration) for scorer in scorers), np.zeros(1))

    return score


def weighted(steps: int, weights: np.ndarray) -> Scorer:
    """Score by a weighted mean of the pull itself over the first inversion steps."""

    def score(of: Statistics, _: Statistics) -> np.ndarray:
        return -(of["inversion pull2"][:, :steps] * weights[:steps]).mean(1)

    return score


def two_sided(steps: Any) -> Scorer:
    """Score by the density of the pull's logarithm among validation images."""

    def score(of: Statistics, calibration: Statistics) -> np.ndarray:
        both = LabelPull(sides="two")
        features = [
            torch.tensor(np.log(images["inversion pull2"][:, steps])).reshape(
                len(images["inversion pull2"]), -1
            )
            for images in (calibration, of)
        ]
        return both.score(features[1], both.fit(features[0])).numpy()

    return score


def scorers(times: np.ndarray, alpha_bar: np.ndarray) -> dict[str, Scorer]:
    """Return the ways to score, by name."""
    default = int(abs(times - 0.1).argmin())
    found = {DEFAULT: pull("inversion", default)}
    named = [(step, f"t = {time:.1f}") for step, time in enumerate(times)]
    found |= {f"pull, {t}": pull("inversion", step) for step, t in named if step != default}
    found |= {f"mean of the first {n} steps": pull("inversion", slice(n)) for n in (2, 3, 5)}
    found |= {f"relative, {t}": pull("inversion", step, True) for step, t in named}
    found |= {f"angle, {t}": angle("inversion", step) for step, t in named}
    at = {f"{time:.1f}": step for step, time in enumerate(times)}
    for t, u in (("0.1", "0.1"), ("0.3", "0.7"), ("0.3", "0.8")):
        both = pull("inversion", at[t]), angle("inversion", at[u])
        found[f"pull, t = {t}, and angle, t = {u}"] = total(both)
    found["first 5 steps, no logarithm"] = weighted(5, np.ones(5))
    found["the same, times 1 / alpha_bar - 1"] = weighted(5, 1 / alpha_bar - 1)
    found["two-sided, t = 0.1"] = two_sided(default)
    found["two-sided, first 5 steps"] = two_sided(slice(5))
    found |= {f"denoising, {t}": pull("denoising", step) for step, t in named}
    return found


def results(of: Statistics) -> dict[str, list[float]]:
    """Return the AUROC of each way to score by group."""
    datasets: dict[str, Statistics] = {}
    for name, values in of.items():
        dataset, _, statistic = name.partition("/")
        if statistic:
            datasets.setdefault(dataset, {})[statistic] = values
    found: dict[str, list[float]] = {}
    for name, scorer in scorers(of["times"], of["alpha_bar"]).items():
        scores = {d: scorer(values, datasets["calibration"]) for d, values in datasets.items()}
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, default=Path("runs/fashion"), help="--out of recipes/fashion.py"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/pull_study"))
    arguments = parser.parse_args()
    found: dict[str, dict[int, dict[str, list[float]]]] = {}
    for benchmark, split, *of in benchmarks(arguments.weights):
        kept = measured(arguments.out / f"{benchmark}_{split}.npz", benchmark, split, *of)
        found.setdefault(benchmark, {})[split] = results(kept)
    for benchmark, of_benchmark in found.items():
        print_tables(benchmark, of_benchmark)


if __name__ == "__main__":
    main()
