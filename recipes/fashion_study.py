"""Test a config on all five class splits of Fashion-MNIST: ``python recipes/fashion_study.py``.

Runs it on each split with the weights that ``recipes/fashion.py`` has trained (a run that exists
is resumed or read), then prints tables in Markdown. AUROC is in percent; near is the mean over the
held-out classes, far that over the far datasets; intervals are those of a Bayesian bootstrap over
images, which the splits share.

- Every score: network evaluations, near by split with mean and standard deviation, far, and the
  leads over the best baselines on near and on far OOD.
- Where the config has calibration images, the fusions by rank: of each discrepancy and path score
  with each baseline, and of two baselines.
- The baseline and the fusions that are the best on the other splits, as somebody would choose who
  has other held-out classes to tune on.
- The logistic regressions of each family of scores that are trained on the other splits.
- What classifiers reach that are trained on the scores of other images of the held-out classes, by
  family of scores.

With ``--per-class``, each score is replaced by its rank among the calibration images of the
predicted class.
"""

import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer
from studies import (
    add_splits,
    calibrated_by_class,
    image_weights,
    interval,
    mean_auroc,
    run_once,
    study_parser,
    weights_of,
)

from diffguard_pl.metrics.table import ScoreTable
from diffguard_pl.names import CALIBRATION, FUSION
from diffguard_pl.report.results import RunResults, read_results
from diffguard_pl.runs.store import read_scores, score_table
from diffguard_pl.scores.combination import Combination, Fusion
from diffguard_pl.scores.conformal import scale

Pair = tuple[str, str]


class Fused(NamedTuple):
    """Near-OOD AUROC of a fusion in percent, and its lead over the better of its parts [1 + R]."""

    near: np.ndarray
    lead: np.ndarray


def run(config: str, split: int, weights: Path, out: Path, settings: list[str]) -> Path:
    """Run a config on a split, unless it has been run before, and return the run's folder."""
    folder = out / config.replace("/", "_") / f"split_{split}"
    settings = [*settings, "--data.class_split", str(split)]
    for name, value in weights_of(config, split, weights).items():
        settings += [f"--model.{name}", value]
    return run_once(config, folder, settings)


def per_class(table: ScoreTable, labels: np.ndarray) -> ScoreTable:
    """Rank the scores of a table among those of the calibration images of the predicted class.

    Args:
        table: With the calibration images.
        labels: Predicted class of each image [N].
    """
    calibration = table.members == table.datasets.index(CALIBRATION)
    ranks = [calibrated_by_class(scores, labels, calibration, scale) for scores in table.values.T]
    return replace(table, values=np.stack(ranks, axis=1))


def drawn_auroc(
    runs: list[RunResults], group: str, weights: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the AUROC of each score on a group of datasets, near or far [splits, 1 + R]."""
    found: dict[str, list[np.ndarray]] = {}
    for results, drawn in zip(runs, weights, strict=True):
        members = members_of(results.table, group)
        for name, values in zip(results.table.scores, results.table.values.T, strict=True):
            found.setdefault(name, []).append(mean_auroc(values, members, drawn))
    return {name: np.stack(of_splits) for name, of_splits in found.items()}


def members_of(table: ScoreTable, group: str) -> np.ndarray:
    """Return 0 for the known images, 1 and so on for the datasets of a group, -1 for others [N]."""
    datasets = [d for d in table.ood if table.group_of(d) == group]
    places = np.full(len(table.datasets), -1)
    places[[0, *datasets]] = range(1 + len(datasets))
    return places[table.members]


def print_table(
    runs: list[RunResults], near: dict[str, np.ndarray], far: dict[str, np.ndarray]
) -> None:
    """Print every score, the best one on near OOD first."""
    baselines = baselines_of(runs[0])
    best_near, best_far = best_of(near, baselines), best_of(far, baselines)
    nfe = {cost.score: f"{cost.nfe:.1f}" for cost in runs[0].costs}
    columns = [
        *("score", "NFE", "near, mean ± sd", f"minus {best_near}", *map(near_names, runs)),
        *("far", f"minus {best_far}"),
    ]
    print(f"| {' | '.join(columns)} |")
    print("|---" + "|---:" * (len(columns) - 1) + "|")
    for score in sorted(near, key=lambda score: -near[score][:, 0].mean()):
        values = near[score][:, 0]
        cells = [
            score,
            nfe.get(score, ""),
            f"{values.mean():.1f} ± {values.std(ddof=min(1, len(values) - 1)):.1f}",
            interval((near[score] - near[best_near]).mean(axis=0)),
            *(f"{value:.1f}" for value in values),
            f"{far[score][:, 0].mean():.1f}",
            interval((far[score] - far[best_far]).mean(axis=0)),
        ]
        print(f"| {' | '.join(cells)} |")


def best_of(auroc: dict[str, np.ndarray], names: list[str]) -> str:
    """Return which of some scores has the best mean over the splits."""
    return max(names, key=lambda name: auroc[name][:, 0].mean())


def baselines_of(results: RunResults) -> list[str]:
    """Return the names of a run's baselines."""
    costs = results.record["score_costs"]
    return [name for name, cost in costs.items() if cost["family"] == "baseline"]


def print_fusions(title: str, found: dict[Pair, Fused], best: np.ndarray, count: int = 10) -> None:
    """Print the best fusions, with their leads over the best baseline [splits, 1 + R]."""
    print(f"| {title} | near, mean | minus the best baseline | minus the better part, by split |")
    print("|---|---:|---:|---:|")
    for pair in sorted(found, key=lambda pair: -found[pair].near[:, 0].mean())[:count]:
        near, lead = found[pair]
        by_split = ", ".join(f"{of_split:+.1f}" for of_split in lead[:, 0])
        cells = [
            " + ".join(pair),
            f"{near[:, 0].mean():.1f} ± {near[:, 0].std(ddof=min(1, len(near) - 1)):.1f}",
            interval((near - best).mean(axis=0)),
            f"{by_split}; mean {interval(lead.mean(axis=0))}",
        ]
        print(f"| {' | '.join(cells)} |")
    often = [pair for pair, of in found.items() if (of.lead[:, 0] > 0).sum() >= 4]
    surely = [pair for pair in often if np.percentile(found[pair].lead.mean(0)[1:], 2.5) > 0]
    print(f"\n{len(found)} fusions; above both parts on four splits or more: {len(often)};")
    print(f"of these with a mean lead beyond the interval: {', '.join(map('+'.join, surely))}")


def print_choices(
    splits: list[int], auroc: dict[str, np.ndarray], kinds: dict[str, dict[Pair, Fused]]
) -> None:
    """Print for each split the baseline and the fusions that are the best on the other splits."""
    choices = {"baseline": {(name,): of[:, 0] for name, of in auroc.items()}}
    for kind, found in kinds.items():
        choices[kind] = {pair: of.near[:, 0] for pair, of in found.items()}
    print(f"| chosen on the other splits | mean | {' | '.join(f'split {s}' for s in splits)} |")
    print("|---" + "|---:" * (1 + len(splits)) + "|")
    for kind, of_kind in choices.items():
        chosen = [best_elsewhere(of_kind, index) for index in range(len(splits))]
        reached = [of_kind[name][index] for index, name in enumerate(chosen)]
        cells = [
            f"{value:.1f} ({' + '.join(name)})" for name, value in zip(chosen, reached, strict=True)
        ]
        print(f"| {kind} | {np.mean(reached):.1f} | {' | '.join(cells)} |")


def best_elsewhere(auroc: dict[tuple[str, ...], np.ndarray], index: int) -> tuple[str, ...]:
    """Return what has the best mean over all splits but one."""
    return max(auroc, key=lambda name: np.delete(auroc[name], index).mean())


def print_learned(runs: list[RunResults], tables: list[ScoreTable]) -> None:
    """Print for each family a logistic regression of its scores, trained on the other splits."""
    print(f"| learned on the other splits | number | near | {' | '.join(map(near_names, runs))} |")
    print("|---|---:|---:" + "|---:" * len(runs) + "|")
    for family, names in families_of(runs[0]).items():
        splits = [near_ranks(table, names) for table in tables]
        reached = []
        for index, (ranks, members) in enumerate(splits):
            others = [split for position, split in enumerate(splits) if position != index]
            model = LogisticRegression(C=0.1, class_weight="balanced")
            model.fit(
                np.concatenate([ranks for ranks, _ in others]),
                np.concatenate([members == 0 for _, members in others]),
            )
            known = model.predict_proba(ranks)[:, 1]
            reached.append(float(mean_auroc(known, members, np.ones((1, len(known))))[0]))
        values = " | ".join(f"{value:.1f}" for value in reached)
        print(f"| {family} | {len(names)} | {np.mean(reached):.1f} | {values} |")


def near_ranks(table: ScoreTable, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks [N, scores] of known and held-out images among the calibration images, in
    [-0.5, 0.5], and the position [N] of the dataset of each image."""
    calibration = table.members == table.datasets.index(CALIBRATION)
    members = members_of(table, "near")
    chosen = members >= 0
    columns = table.values[:, [table.scores.index(name) for name in names]].T
    ranks = [
        np.searchsorted(np.sort(column[calibration]), column[chosen]) / calibration.sum() - 0.5
        for column in columns
    ]
    return np.stack(ranks, axis=1), members[chosen]


def fusions(
    pairs: Iterable[Pair],
    near: dict[str, np.ndarray],
    tables: list[ScoreTable],
    weights: list[np.ndarray],
) -> dict[Pair, Fused]:
    """Fuse pairs of scores; ``tables`` hold the calibration images, too."""
    found = {}
    for pair in pairs:
        reached = []
        for table, drawn in zip(tables, weights, strict=True):
            fused = Combination(Fusion(list(pair))).apply_to_table(table)
            values = fused.values[:, fused.scores.index(FUSION)]
            reached.append(mean_auroc(values, members_of(fused, "near"), drawn))
        parts = np.stack([near[name] for name in pair])
        better = parts[:, :, 0].argmax(axis=0)
        of_pair = np.stack(reached)
        found[pair] = Fused(of_pair, of_pair - parts[better, np.arange(len(better))])
    return found


def print_limits(runs: list[RunResults]) -> None:
    """Print what a classifier reaches that knows the held-out classes, by family of scores."""
    print("| scores | number | logistic regression | random forest |")
    print("|---|---:|---:|---:|")
    for family, names in families_of(runs[0]).items():
        reached = np.mean([limits(run.table, names) for run in runs], axis=0)
        print(f"| {family} | {len(names)} | {' | '.join(f'{value:.1f}' for value in reached)} |")


def families_of(results: RunResults) -> dict[str, list[str]]:
    """Return the names of a run's scores by family, and of all scores."""
    families: dict[str, list[str]] = {}
    for score, cost in results.record["score_costs"].items():
        families.setdefault(cost["family"], []).append(score)
    return {**families, "all": [score for names in families.values() for score in names]}


def limits(table: ScoreTable, names: list[str]) -> list[float]:
    """Return the near-OOD AUROC in percent of two classifiers of the scores.

    They are trained on four fifths of the known and of the held-out images, and tested on the
    fifth, in turn; the classes have equal weight. Scores enter by their ranks.
    """
    members = members_of(table, "near")
    values = table.values[members >= 0][:, [table.scores.index(name) for name in names]]
    ranks = rankdata(values, axis=0) / len(values) - 0.5
    members = members[members >= 0]
    classifiers = (
        make_pipeline(SplineTransformer(), LogisticRegression(C=0.1, class_weight="balanced")),
        RandomForestClassifier(300, min_samples_leaf=5, class_weight="balanced", random_state=100),
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=100)
    reached = []
    for classifier in classifiers:
        known = cross_val_predict(
            classifier, ranks, members == 0, cv=folds.split(ranks, members), method="predict_proba"
        )[:, 1]
        reached.append(float(mean_auroc(known, members, np.ones((1, len(known))))[0]))
    return reached


def near_names(results: RunResults) -> str:
    table = results.table
    return ", ".join(table.datasets[d] for d in table.ood if table.group_of(d) == "near")


def main() -> None:
    parser = study_parser(__doc__, "fashion_study")
    parser.add_argument("--config", default="combine/fashion_ldm", help="what to test")
    add_splits(parser)
    parser.add_argument("--per-class", action="store_true", help="calibrate scores by class")
    arguments, settings = parser.parse_known_args()
    folders = [
        run(arguments.config, split, arguments.weights, arguments.out, settings)
        for split in arguments.splits
    ]
    runs = [read_results(folder) for folder in folders]
    raw = [read_scores(folder) for folder in folders]
    tables = [score_table(*of_run) for of_run in raw]
    if arguments.per_class:
        if CALIBRATION not in tables[0].datasets:
            sys.exit("error: --per-class: needs calibration images, as configs in combine/ have")
        labels = [frame.loc[frame["error"].isna(), "prediction"].to_numpy() for frame, _ in raw]
        tables = list(map(per_class, tables, labels))
        alone = [Combination().apply_to_table(table) for table in tables]
        runs = [replace(run, table=table) for run, table in zip(runs, alone, strict=True)]
    weights = image_weights([run.frame.loc[run.frame["error"].isna(), "path"] for run in runs])
    near, far = (drawn_auroc(runs, group, weights) for group in ("near", "far"))
    print_table(runs, near, far)
    print()
    if CALIBRATION in tables[0].datasets:
        baselines = baselines_of(runs[0])
        best = near[best_of(near, baselines)]
        others = [name for name in tables[0].scores if name not in baselines]
        kinds = {
            "fusion with a baseline": fusions(product(others, baselines), near, tables, weights),
            "fusion of baselines": fusions(combinations(baselines, 2), near, tables, weights),
        }
        for kind, found in kinds.items():
            print_fusions(kind, found, best)
            print()
        if len(runs) > 1:
            print_choices(arguments.splits, {name: near[name] for name in baselines}, kinds)
            print()
            print_learned(runs, tables)
    else:
        print("No fusions: the config has no calibration images, as those in combine/ have.")
    print()
    print_limits(runs)


if __name__ == "__main__":
    main()
