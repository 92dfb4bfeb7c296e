"""Test a config on all five class splits of Fashion-MNIST: ``python recipes/fashion_study.py``.

Runs it on each split with the weights that ``recipes/fashion.py`` has trained (a run that exists
is resumed or read), then prints a table in Markdown: AUROC of every score in percent, mean over
held-out classes for each split, mean and standard deviation over splits, the lead over the best
baseline with the 95 % interval of a paired bootstrap over images, and network evaluations. Where
the config has calibration images, a second table has the fusions of each discrepancy and path score
with each baseline, and a third one the fusions that are the best on the other splits, as somebody
would choose who has other held-out classes to tune on, and a fourth one the logistic regressions of
each family of scores that are trained on the other splits. The last table has the limit of what a
family tells of the held-out classes: the AUROC of classifiers that are trained on the scores of
other images of these classes.
"""

from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer
from studies import add_splits, run_once, study_parser, weights_of

from diffguard_pl.metrics.bootstrap import replicates
from diffguard_pl.metrics.detection import auroc
from diffguard_pl.metrics.table import ScoreTable, result_rows
from diffguard_pl.names import CALIBRATION, FUSION, MEAN
from diffguard_pl.report.results import RunResults, read_results
from diffguard_pl.runs.store import read_scores, score_table
from diffguard_pl.scores.combination import Combination, Fusion

Name = TypeVar("Name", str, tuple[str, str])


class Study(NamedTuple):
    """AUROC of all scores on one group of datasets.

    Attributes:
        auroc: By score, one value a split.
        drawn: By score, the bootstrap's draws of the mean over splits [R].
    """

    auroc: dict[str, np.ndarray]
    drawn: dict[str, np.ndarray]


class Fused(NamedTuple):
    """Near-OOD AUROC of a fusion in percent, and its lead over the better of its parts."""

    near: float
    lead: float


def run(config: str, split: int, weights: Path, out: Path, settings: list[str]) -> Path:
    """Run a config on a split, unless it has been run before, and return the run's folder."""
    folder = out / Path(config).stem / f"split_{split}"
    settings = [*settings, "--data.class_split", str(split)]
    for name, value in weights_of(config, split, weights).items():
        settings += [f"--model.{name}", value]
    return run_once(config, folder, settings)


def study(runs: list[RunResults], group: str) -> Study:
    """Collect the mean over the datasets of a group, near or far, from one run a split."""
    auroc: dict[str, list[float]] = {}
    drawn: dict[str, list[np.ndarray]] = {}
    for seed, results in enumerate(runs):
        draws = replicates(results.table, seed=seed)
        for row in results.results:
            if (row.group, row.dataset) == (group, MEAN):
                auroc.setdefault(row.score, []).append(100 * row.metrics.auroc)
                drawn.setdefault(row.score, []).append(100 * draws[group, MEAN, row.score][:, 0])
    return Study(
        {score: np.array(values) for score, values in auroc.items()},
        {score: np.mean(values, axis=0) for score, values in drawn.items()},
    )


def print_table(runs: list[RunResults]) -> None:
    near, far = study(runs, "near"), study(runs, "far")
    means = {score: values.mean() for score, values in near.auroc.items()}
    baselines = baselines_of(runs[0])
    best = max((score for score in means if score in baselines), key=lambda score: means[score])
    nfe = {cost.score: f"{cost.nfe:.1f}" for cost in runs[0].costs}
    splits = list(map(near_names, runs))
    print(f"| score | NFE | near, mean ± sd | minus {best} | {' | '.join(splits)} | far |")
    print("|---" + "|---:" * (len(runs) + 4) + "|")
    for score in sorted(means, key=lambda score: -means[score]):
        values = near.auroc[score]
        lead = near.drawn[score] - near.drawn[best]
        low, high = np.percentile(lead, [2.5, 97.5])
        cells = [
            score,
            nfe.get(score, ""),
            f"{means[score]:.2f} ± {values.std(ddof=min(1, len(values) - 1)):.2f}",
            f"{means[score] - means[best]:+.2f} ({low:.2f} to {high:.2f})",
            *(f"{value:.2f}" for value in values),
            f"{far.auroc[score].mean():.2f}",
        ]
        print(f"| {' | '.join(cells)} |")


def baselines_of(results: RunResults) -> list[str]:
    """Return the names of a run's baselines."""
    costs = results.record["score_costs"]
    return [name for name, cost in costs.items() if cost["family"] == "baseline"]


def print_fusions(found: list[dict[tuple[str, str], Fused]], count: int = 20) -> None:
    """Print the fusions by rank of one score and one baseline, the best ones first."""
    print("| fusion | near, mean | minus the better part, by split | above both parts |")
    print("|---|---:|---:|---:|")
    mean = {pair: np.mean([of[pair].near for of in found]) for pair in found[0]}
    for pair in sorted(mean, key=lambda pair: -mean[pair])[:count]:
        leads = [of[pair].lead for of in found]
        by_split = ", ".join(f"{lead:+.2f}" for lead in leads)
        above = f"{sum(lead > 0 for lead in leads)} of {len(leads)}"
        print(f"| {' + '.join(pair)} | {mean[pair]:.2f} | {by_split} | {above} |")


def print_choices(
    splits: list[int], found: list[dict[tuple[str, str], Fused]], runs: list[RunResults]
) -> None:
    """Print for each split the fusion and the baseline that are the best on the other splits."""
    near, baselines = study(runs, "near").auroc, baselines_of(runs[0])
    fused = {pair: np.array([of[pair].near for of in found]) for pair in found[0]}
    alone = {score: near[score] for score in baselines}
    print("| split | fusion of the others | near | minus the better part | baseline | near |")
    print("|---|---|---:|---:|---|---:|")
    totals = []
    for index, split in enumerate(splits):
        pair, baseline = best_elsewhere(fused, index), best_elsewhere(alone, index)
        numbers = fused[pair][index], found[index][pair].lead, alone[baseline][index]
        totals.append(numbers)
        print(
            f"| {split} | {' + '.join(pair)} | {numbers[0]:.2f} | {numbers[1]:+.2f} "
            f"| {baseline} | {numbers[2]:.2f} |"
        )
    mean = np.mean(totals, axis=0)
    print(f"| mean | | {mean[0]:.2f} | {mean[1]:+.2f} | | {mean[2]:.2f} |")


def best_elsewhere(auroc: dict[Name, np.ndarray], index: int) -> Name:
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
            reached.append(100 * mean_auroc(known, members))
        values = " | ".join(f"{value:.1f}" for value in reached)
        print(f"| {family} | {len(names)} | {np.mean(reached):.1f} | {values} |")


def near_ranks(table: ScoreTable, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks [N, scores] of known and held-out images among the calibration images, in
    [-0.5, 0.5], and the position [N] of the dataset of each image."""
    calibration = table.members == table.datasets.index(CALIBRATION)
    chosen = np.isin(table.members, [0, *near_members(table)])
    columns = table.values[:, [table.scores.index(name) for name in names]].T
    ranks = [
        np.searchsorted(np.sort(column[calibration]), column[chosen]) / calibration.sum() - 0.5
        for column in columns
    ]
    return np.stack(ranks, axis=1), table.members[chosen]


def fusions(scores: ScoreTable, baselines: list[str]) -> dict[tuple[str, str], Fused]:
    """Fuse each score with each baseline."""
    alone = near_auroc(Combination().apply_to_table(scores))
    found = {}
    for pair in product([name for name in scores.scores if name not in baselines], baselines):
        fused = near_auroc(Combination(Fusion(list(pair))).apply_to_table(scores))[FUSION]
        found[pair] = Fused(fused, fused - max(alone[name] for name in pair))
    return found


def print_limits(runs: list[RunResults]) -> None:
    """Print what a classifier reaches that knows the held-out classes, by family of scores."""
    print("| scores | number | logistic regression | random forest |")
    print("|---|---:|---:|---:|")
    for family, names in families_of(runs[0]).items():
        reached = np.mean([limits(run.table, names) for run in runs], axis=0)
        print(f"| {family} | {len(names)} | {' | '.join(f'{100 * r:.1f}' for r in reached)} |")


def families_of(results: RunResults) -> dict[str, list[str]]:
    """Return the names of a run's scores by family, and of all scores."""
    families: dict[str, list[str]] = {}
    for score, cost in results.record["score_costs"].items():
        families.setdefault(cost["family"], []).append(score)
    return {**families, "all": [score for names in families.values() for score in names]}


def near_members(table: ScoreTable) -> list[int]:
    """Return the positions of the held-out classes among the datasets."""
    return [d for d in table.ood if table.group_of(d) == "near"]


def mean_auroc(known: np.ndarray, members: np.ndarray) -> float:
    """Return the AUROC of scores [N] of known (0) and held-out images, mean over the classes."""
    held_out = np.unique(members[members != 0])
    return float(np.mean([auroc(known[members == 0], known[members == d]) for d in held_out]))


def limits(table: ScoreTable, names: list[str]) -> list[float]:
    """Return the near-OOD AUROC of two classifiers of the scores, mean over held-out classes.

    They are trained on four fifths of the known and of the held-out images, and tested on the
    fifth, in turn; the classes have equal weight. Scores enter by their ranks.
    """
    chosen = np.isin(table.members, [0, *near_members(table)])
    values = table.values[chosen][:, [table.scores.index(name) for name in names]]
    ranks = rankdata(values, axis=0) / len(values) - 0.5
    members = table.members[chosen]
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
        reached.append(mean_auroc(known, members))
    return reached


def near_auroc(scores: ScoreTable) -> dict[str, float]:
    """Compute the AUROC of each score in percent, mean over the held-out classes."""
    rows = result_rows(scores)
    return {
        row.score: 100 * row.metrics.auroc
        for row in rows
        if (row.group, row.dataset) == ("near", MEAN)
    }


def near_names(results: RunResults) -> str:
    rows = [row for row in results.results if row.group == "near" and not row.is_mean]
    return ", ".join(dict.fromkeys(row.dataset for row in rows))


def main() -> None:
    parser = study_parser(__doc__, "fashion_study")
    parser.add_argument("--config", default="combine/fashion_ldm", help="what to test")
    add_splits(parser)
    arguments, settings = parser.parse_known_args()
    folders = [
        run(arguments.config, split, arguments.weights, arguments.out, settings)
        for split in arguments.splits
    ]
    runs = [read_results(folder) for folder in folders]
    print_table(runs)
    print()
    tables = [score_table(*read_scores(folder)) for folder in folders]
    if CALIBRATION in tables[0].datasets:
        found = [fusions(table, baselines_of(runs[0])) for table in tables]
        print_fusions(found)
        print()
        if len(runs) > 1:
            print_choices(arguments.splits, found, runs)
            print()
            print_learned(runs, tables)
    else:
        print("No fusions: the config has no calibration images, as those in combine/ have.")
    print()
    print_limits(runs)


if __name__ == "__main__":
    main()
