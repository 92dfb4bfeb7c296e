"""Results in the forms of OpenOOD v1.5: tables of its evaluator, and entries of its leaderboard.

Its evaluator writes one table per method, ``ood/METHOD.csv`` and ``fsood/METHOD.csv``
(https://github.com/Jingkang50/OpenOOD, ``scripts/eval_ood.py``). Its leaderboard has a table per
benchmark, with one line per method, from which its web page is made as JSON
(https://github.com/zjysteven/OpenOOD, branch ``leaderboard``).
"""

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..metrics.table import ResultRow
from ..names import CASCADE, FULL_SPECTRUM, FUSION
from ..runs.csv_files import write_csv
from ..runs.files import atomic_write
from ..scores.combination import Combination
from .results import RunResults

METRICS = {
    "FPR@95": "fpr95_openood",
    "AUROC": "auroc",
    "AUPR_IN": "aupr_in",
    "AUPR_OUT": "aupr_out",
}
"""Columns of the evaluator's table and the metrics in them; ``ACC`` follows."""
GROUPS = {"near": "nearood", "far": "farood"}
"""Groups that the evaluator averages over, and the names of its lines for the means."""
CIFAR_FAR = ["mnist", "svhn", "texture", "places365"]
IMAGENET_OOD = {
    "near": ["ssb_hard", "ninco"],
    "far": ["inaturalist", "textures", "openimage_o"],
}
BENCHMARKS: dict[str, dict[str, list[str]]] = {
    "cifar10": {"near": ["cifar100", "tin"], "far": CIFAR_FAR},
    "cifar100": {"near": ["cifar10", "tin"], "far": CIFAR_FAR},
    "imagenet": IMAGENET_OOD,
    "imagenet200": IMAGENET_OOD,
}
"""In-distribution dataset -> group -> datasets of OpenOOD v1.5."""
FILES = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "imagenet": "imagenet1k_{task}",
    "imagenet200": "imagenet200_{task}",
}
"""Names of the leaderboard's tables by in-distribution dataset."""
TASKS = {"": "ood", FULL_SPECTRUM: "fsood"}
"""OpenOOD's names of the standard and the full-spectrum setting, by the prefix of our groups."""
ENTRY = [
    "Training",
    "Postprocessor",
    "Near-OOD_AUROC",
    "Far-OOD_AUROC",
    "ID_Accuracy",
    "Outlier_Data",
    "Arch",
    "Additional_Description",
]
"""Columns of the leaderboard's tables."""
ALIASES = {
    "msp": "MSP",
    "max_logit": "MLS",
    "energy": "EBO",
    "gen": "GEN",
    "odin": "ODIN",
    "react": "ReAct",
    "ash": "ASH",
    "scale": "SCALE",
    "knn": "KNN",
    "vim": "VIM",
    "mahalanobis": "MDS",
    "rmds": "RMDS",
}
"""The leaderboard's names of the baselines."""
ARCHITECTURES = {
    "resnet50": "ResNet50",
    "swin_t": "Swin-T",
    "vit_b_16": "ViT-B/16",
    "regnet_y_16gf": "RegNet_Y_16GF",
    "ResNet18_32x32": "ResNet18",
    "ResNet18_224x224": "ResNet18",
}
"""The leaderboard's names of classifiers."""


def write_openood(runs: Sequence[RunResults], folder: Path) -> list[Path]:
    """Write results as OpenOOD's evaluator and leaderboard have them.

    Several runs are the trainings of one classifier (OpenOOD's s0, s1 and s2): the values become
    their mean ± standard deviation, as in OpenOOD.

    Args:
        runs: One run, or several of the same datasets and scores.
        folder: Folder to write to: ``ood/SCORE.csv`` of every score, the leaderboard's table with
            the lines of this method, and the same lines as JSON; with covariate-shifted datasets
            also those of full-spectrum detection.

    Returns:
        Paths of the tables for the leaderboard.

    Raises:
        InputError: A run lacks datasets of the benchmark, is not finished, or differs from the
            others in its datasets or scores; or a file could not be written.
    """
    first = runs[0]
    for run in runs:
        _check(run, first)
    written = []
    for prefix, task in TASKS.items():
        if prefix not in first.table.in_distribution_sides:
            continue
        for score in first.header.scores:
            lines = _evaluator_table(runs, score, prefix)
            # A name of one's own score may have any characters.
            name = re.sub(r"[^\w.-]", "_", score)
            write_csv(["", *METRICS, "ACC"], lines, folder / task / f"{name}.csv")
        entries = [_entry(runs, score, prefix) for score in _methods(first)]
        file = FILES.get(first.ind, f"{first.ind}_{{task}}").format(task=task)
        written.append(folder / f"{file}.csv")
        write_csv(ENTRY, [list(entry.values()) for entry in entries], written[-1])
        with atomic_write(folder / f"{file}.json") as unfinished:
            content = [entry | _means(entry) for entry in entries]
            unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return written


# ---- the evaluator's table


def _evaluator_table(runs: Sequence[RunResults], score: str, prefix: str) -> list[list[str]]:
    """Return the lines of one method: each dataset of a group, then the group's mean."""
    lines = []
    for group, mean in GROUPS.items():
        # Values [runs, datasets, columns] in percent.
        values = np.array([_group_values(run, score, prefix + group) for run in runs])
        datasets = [row.dataset for row in _rows(runs[0], score, prefix + group)]
        values = np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)
        for d, name in enumerate([*datasets, mean]):
            lines.append([name, *(_text(values[:, d, m]) for m in range(values.shape[2]))])
    return lines


def _group_values(run: RunResults, score: str, group: str) -> list[list[float]]:
    """Return the metrics and the accuracy for each dataset of a group, in percent."""
    accuracy = run.full_spectrum_accuracy if group.startswith(FULL_SPECTRUM) else run.accuracy
    values = []
    for row in _rows(run, score, group):
        metrics = [getattr(row.metrics, metric) for metric in METRICS.values()]
        values.append([100 * value for value in (*metrics, accuracy)])
    return values


def _rows(run: RunResults, score: str, group: str) -> list[ResultRow]:
    """Return the results of a score on the datasets of a group, without their mean."""
    of_group = [row for row in run.results if row.group == group and row.score == score]
    return [row for row in of_group if row.dataset in run.header.datasets]


def _text(values: np.ndarray) -> str:
    """Return one value, or the mean ± standard deviation of several runs; / if unknown."""
    if np.isnan(values).any():
        return "/"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{values.mean():.2f} ± {values.std():.2f}"


# ---- the leaderboard's lines


def _methods(run: RunResults) -> dict[str, str]:
    """Return the scores that are methods of their own, and the leaderboard's names of these."""
    combination = Combination.from_settings(run.header.combination)
    found = {run.primary_score: "DiffGuard"}
    if combination.fusion:
        parts = [ALIASES[name] for name in combination.fusion.scores if name in ALIASES]
        found[FUSION] = " + ".join(["DiffGuard", *parts])
    if combination.cascade:
        parts = [combination.cascade.baseline]
        found[CASCADE] = " + ".join(["DiffGuard", *(ALIASES.get(name, name) for name in parts)])
    return {score: name for score, name in found.items() if score in run.header.scores}


def _entry(runs: Sequence[RunResults], score: str, prefix: str) -> dict[str, str]:
    """Return one line of the leaderboard's table, by column."""
    run = runs[0]
    means = {
        group: np.array(
            [np.mean(_group_values(run, score, prefix + group), axis=0) for run in runs]
        )
        for group in GROUPS
    }
    auroc, accuracy = list(METRICS).index("AUROC"), len(METRICS)
    training, description = _training(run)
    parts = [description, _diffusion_model(run), score]
    values = [
        training,
        _methods(run)[score],
        _text(means["near"][:, auroc]),
        _text(means["far"][:, auroc]),
        _text(means["near"][:, accuracy]),
        "No",
        _architecture(run),
        "; ".join(part for part in parts if part),
    ]
    return dict(zip(ENTRY, values, strict=True))


def _means(entry: Mapping[str, str]) -> dict[str, str]:
    """Return the means alone of a line's values, as the leaderboard's JSON has them."""
    names = ("ID_Accuracy", "Near-OOD_AUROC", "Far-OOD_AUROC")
    return {f"{name}_Mean": entry[name].partition(" ")[0] for name in names}


def _setting(run: RunResults, *path: str) -> Any:
    """Return a setting of the run's recorded config; None if it is unknown."""
    found: Any = run.record.get("config")
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _architecture(run: RunResults) -> str:
    """Return the leaderboard's name of the classifier; empty if unknown."""
    model = _setting(run, "model", "classifier", "init_args", "model")
    if isinstance(model, dict):
        model = str(model.get("class_path")).rpartition(".")[2]
    return ARCHITECTURES.get(str(model), str(model or ""))


def _training(run: RunResults) -> tuple[str, str]:
    """Return how the classifier was trained, and a description; both empty if unknown."""
    checkpoint = _setting(run, "model", "classifier", "init_args", "checkpoint")
    if not checkpoint:
        model = _setting(run, "model", "classifier", "init_args", "model")
        is_random = _setting(run, "model", "classifier", "init_args", "weights") == "random"
        is_torchvision = isinstance(model, str) and not model.startswith("timm/") and not is_random
        return ("CrossEntropy", "torchvision ckpt") if is_torchvision else ("", "")
    # OpenOOD's folders tell the training: imagenet200_resnet18_224x224_base_e90_lr0.1_default
    found = re.search(r"_base_e(\d+)_", str(checkpoint))
    return ("CrossEntropy", f"{found[1]} epochs") if found else ("", "")


def _diffusion_model(run: RunResults) -> str:
    """Return the checkpoint of the diffusion model; empty if unknown."""
    checkpoint = _setting(run, "model", "backbone", "init_args", "checkpoint")
    return f"diffusion model {Path(str(checkpoint)).name}" if checkpoint else ""


# ---- checks


def _check(run: RunResults, first: RunResults) -> None:
    """Raise an `InputError` unless a run can be an entry; warn if it left out images."""
    expected = BENCHMARKS.get(run.ind)
    for group in GROUPS:
        datasets = [name for name, of in run.header.groups.items() if of == group]
        missing = set(expected[group] if expected else []) - set(datasets)
        if missing or not datasets:
            what = f"lacks {', '.join(sorted(missing))}" if missing else "has no datasets"
            raise InputError(
                f"{run.folder}: {what} in the group {group}, which OpenOOD's leaderboard needs; "
                "run a config of openood/, or set --data.benchmark openood_v1.5"
            )
        if expected and set(datasets) - set(expected[group]):
            others = ", ".join(sorted(set(datasets) - set(expected[group])))
            raise InputError(
                f"{run.folder}: has {others} in the group {group}, which OpenOOD's leaderboard "
                "does not average over; leave it out with --data.only"
            )
    if run.unfinished:
        raise InputError(f"{run.folder}: {run.unfinished}; finish it with --resume")
    same = (run.header.datasets, run.header.groups, run.header.scores)
    if same != (first.header.datasets, first.header.groups, first.header.scores):
        raise InputError(
            f"{run.folder}: has other datasets or scores than {first.folder}; an entry is of runs "
            "of one config"
        )
    limit = _setting(run, "data", "init_args", "limit")
    batches = _setting(run, "trainer", "limit_test_batches")
    if limit is not None or batches not in (None, 1.0):
        warnings.warn(
            f"{run.folder}: has only a part of the images (data.limit, "
            "trainer.limit_test_batches); OpenOOD's leaderboard is for all of them",
            stacklevel=3,
        )
    if math.isnan(run.accuracy):
        warnings.warn(
            f"{run.folder}: has no labels of {run.ind}, so that the accuracy is missing",
            stacklevel=3,
        )
