"""Comparison of runs: paired differences of AUROC and FPR@95 on the images that two runs share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import InputError
from ..metrics.bootstrap import METRIC_NAMES, Key, intervals, replicates
from ..metrics.table import Interval, ResultRow, ScoreTable, result_rows
from ..names import AVERAGE, CSID, FULL_SPECTRUM
from .results import RunResults

if TYPE_CHECKING:
    import pandas as pd


class Difference(NamedTuple):
    """A run's metric minus that of the first run, on the images that both have.

    Attributes:
        value: Difference, in [-1, 1].
        interval: 95 % interval of the difference, by a paired bootstrap over images.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class ComparedScore:
    """One score on one dataset (or a mean over datasets) in each run.

    Attributes:
        group: Group of the dataset in the first run.
        dataset: Name of the dataset, ``mean`` or ``average``.
        scores: Name of the score in each run. Names differ if primary scores are compared.
        results: Result of each run on all of its images.
        differences: For AUROC and FPR@95, difference of every later run from the first.
    """

    group: str
    dataset: str
    scores: tuple[str, ...]
    results: tuple[ResultRow, ...]
    differences: dict[str, list[Difference]]


def compare(runs: Sequence[RunResults]) -> list[ComparedScore]:
    """Compare the primary scores of runs, and each score that all of them have.

    Datasets are grouped as in the first run. A mean over a group or over all datasets is left out
    unless it is over the same datasets in all runs, since others are not comparable.

    Raises:
        InputError: The runs share no images, or have different in-distribution datasets.
    """
    first = runs[0]
    results_by_run = [_comparable_results(run, first) for run in runs]
    pairs = [_resample_pair(first, run) for run in runs[1:]]

    # The primary scores come first, although their names may differ, then the shared names.
    primary = tuple(run.primary_score for run in runs)
    names_by_run = [primary]
    for name in first.header.scores:
        names = (name,) * len(runs)
        if names != primary and all(name in run.header.scores for run in runs):
            names_by_run.append(names)

    compared = []
    for group, dataset in dict.fromkeys(key[:2] for key in results_by_run[0]):
        for names in names_by_run:
            keys = [(group, dataset, name) for name in names]
            # Every run must have a result, on all of its images ...
            results = [of_run.get(key) for of_run, key in zip(results_by_run, keys, strict=True)]
            found = tuple(result for result in results if result is not None)
            if len(found) < len(runs):
                continue
            # ... and on those that it shares with the first run.
            if any(keys[0] not in a.results for a, _ in pairs):
                continue
            differences = _differences(pairs, keys)
            compared.append(ComparedScore(group, dataset, names, found, differences))
    if not compared:
        folders = f"{first.folder} and {runs[1].folder}"
        raise InputError(f"{folders}: no dataset and score in common; compare runs that share both")
    return compared


def run_letter(number: int) -> str:
    """Return the letter of the run at this position: A to Z, then AA, AB, and so on."""
    if number < 26:
        return chr(ord("A") + number)
    return run_letter(number // 26 - 1) + run_letter(number % 26)


@dataclass(frozen=True)
class _Resampled:
    """One run of a pair, restricted to the images that both have.

    Attributes:
        results: Results on the common images.
        replicates: AUROC and FPR@95 [R, 2] of each draw of the bootstrap.
    """

    results: dict[Key, ResultRow]
    replicates: dict[Key, np.ndarray]


def _differences(
    pairs: Sequence[tuple[_Resampled, _Resampled]], keys: Sequence[Key]
) -> dict[str, list[Difference]]:
    """Return the differences of every later run from the first.

    Args:
        pairs: First run and other run of each pair.
        keys: Key of the score in each run, the first run's first.
    """
    differences: dict[str, list[Difference]] = {metric: [] for metric in METRIC_NAMES}
    for (a, b), key in zip(pairs, keys[1:], strict=True):
        # Both runs see the same images in each draw, so draws are subtracted one by one. An easy or
        # hard draw moves both alike; that cancels and narrows the interval.
        ends = intervals(b.replicates[key] - a.replicates[keys[0]])
        for metric in METRIC_NAMES:
            of_a = getattr(a.results[keys[0]].metrics, metric)
            of_b = getattr(b.results[key].metrics, metric)
            differences[metric].append(Difference(of_b - of_a, ends[metric]))
    return differences


def _comparable_results(run: RunResults, first: RunResults) -> dict[Key, ResultRow]:
    """Return a run's results under the groups of the first run.

    Leaves out means over other datasets than in the first run, and full-spectrum results if the
    runs have different covariate-shifted datasets.
    """
    same_shifted = _members_of(run, CSID) == _members_of(first, CSID)
    results = {}
    for result in run.results:
        prefix = FULL_SPECTRUM if result.is_full_spectrum else ""
        if prefix and not same_shifted:
            continue
        # A dataset's result does not depend on its group; a mean does.
        if not result.is_mean:
            group = prefix + _group_of(first, result.dataset)
            results[group, result.dataset, result.score] = result
        elif _averaged(run, result) == _averaged(first, result):
            results[result.group, result.dataset, result.score] = result
    return results


def _group_of(run: RunResults, dataset: str) -> str:
    return run.header.groups.get(dataset, dataset)


def _members_of(run: RunResults, group: str) -> set[str]:
    """Return the datasets of a group."""
    return {name for name in run.header.datasets[1:] if _group_of(run, name) == group}


def _averaged(run: RunResults, mean: ResultRow) -> set[str]:
    """Return the datasets of a run that a mean is taken over."""
    if mean.dataset == AVERAGE:
        return set(run.header.datasets[1:]) - _members_of(run, CSID)
    return _members_of(run, mean.group.removeprefix(FULL_SPECTRUM))


def _resample_pair(a: RunResults, b: RunResults) -> tuple[_Resampled, _Resampled]:
    """Resample the images that both runs scored, with the same images in each draw."""
    if a.ind != b.ind:
        raise InputError(
            f"{b.folder}: in-distribution dataset is {b.ind}, but {a.ind} in {a.folder}; "
            "compare runs with the same in-distribution dataset"
        )

    # An image is the same in both runs if dataset, index and path agree.
    identity = ["dataset", "index", "path"]
    common = a.scored[identity].merge(b.scored[identity], on=identity)
    if not (common["dataset"] == a.ind).any() or common["dataset"].nunique() < 2:
        raise InputError(
            f"{a.folder} and {b.folder}: no images in common (by dataset, index and path); "
            "compare runs of the same datasets"
        )

    datasets = [name for name in a.header.datasets if (common["dataset"] == name).any()]
    groups = {name: _group_of(a, name) for name in datasets[1:]}

    resampled = []
    for run in (a, b):
        table = _table_of(run, common, datasets, groups)
        results = {}
        for result in result_rows(table):
            if result.is_full_spectrum and not _members_of(a, CSID) <= set(datasets):
                continue
            # A mean is over fewer datasets than in the runs if one of them has no common image.
            if not result.is_mean or _averaged(a, result) <= set(datasets):
                results[result.group, result.dataset, result.score] = result
        # Tables of the same images in the same order get the same draws.
        resampled.append(_Resampled(results, replicates(table)))
    return resampled[0], resampled[1]


def _table_of(
    run: RunResults, images: "pd.DataFrame", datasets: list[str], groups: dict[str, str]
) -> ScoreTable:
    """Return a run's scores of the given images, in their order."""
    # A left merge by the images keeps their order, which may differ in this run's frame.
    frame = images.merge(run.frame, on=list(images.columns), how="left")
    numbers = {name: number for number, name in enumerate(datasets)}
    return ScoreTable(
        scores=run.header.scores,
        datasets=datasets,
        groups=groups,
        values=frame[run.header.scores].to_numpy(float),
        members=frame["dataset"].map(numbers).to_numpy(),
    )
