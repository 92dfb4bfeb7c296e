"""Comparison of a run with the paper: published results beside those of the run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..metrics.bootstrap import intervals, replicates
from ..metrics.detection import DetectionMetrics
from ..metrics.table import ResultRow
from ..names import ALL, AVERAGE
from ..runs.changed_settings import flat_settings
from ..runs.record import CONFIG_FILE
from .paper_settings import (
    Configs,
    Match,
    matching_methods,
    names_not_default,
    recorded_settings,
)
from .published import Method, Published, results_of
from .results import RunResults

SMALL = ("trainer.precision", "model.tf32", "model.guidance.seed", "seed_everything")
"""Settings that change results by rounding, or as the paper's four runs differ."""
NAMED_CHANGES = 5
"""Changed settings that a note names."""


@dataclass(frozen=True)
class PaperRow:
    """Published result of a method on a dataset, beside the run's.

    Attributes:
        method: Method of the paper.
        published: Published result.
        result: Result of the run, with intervals.
        is_comparable: Whether the run is complete and its settings are those of the method.
    """

    method: Method
    published: Published
    result: ResultRow
    is_comparable: bool

    def difference(self, metric: str) -> float:
        """Return the run's value of a metric minus the published one; NaN if not published."""
        value: float | None = getattr(self.published, metric)
        return math.nan if value is None else getattr(self.result.metrics, metric) - value

    def differs(self, metric: str) -> bool | None:
        """Return whether run and paper differ by more than the interval and the paper's spread.

        None if they cannot be compared: the settings differ, or a value is missing.
        """
        value: float | None = getattr(self.published, metric)
        ends = self.result.intervals.get(metric)
        if not self.is_comparable or value is None or ends is None or math.isnan(ends.low):
            return None
        spread = self.method.spread
        return not ends.low - spread <= value <= ends.high + spread


@dataclass(frozen=True)
class PaperComparison:
    """Comparison of a run with the paper.

    Attributes:
        rows: Published results beside the run's, method by method.
        notes: What limits the comparison, one sentence each without a full stop.
    """

    rows: list[PaperRow]
    notes: list[str]

    def __bool__(self) -> bool:
        return bool(self.rows)

    @cached_property
    def by_result(self) -> dict[tuple[str, str, str], PaperRow]:
        """Rows by group, dataset and score of the run's result."""
        return {row.result[:3]: row for row in self.rows}


def compare_with_paper(run: RunResults, configs: Configs) -> PaperComparison:
    """Find the published results that correspond to a run.

    Args:
        run: Results of the run.
        configs: Settings of the shipped configs by name, including those of their bases. Methods
            whose config is missing are left out.

    Returns:
        The comparison; without rows, its one note says why nothing corresponds.
    """
    recorded = recorded_settings(run)
    if recorded is None:
        note = f"neither run.json nor {CONFIG_FILE} has the settings of the run"
        return PaperComparison([], [note])
    matches = matching_methods(run, recorded, configs)
    rows = [row for match in matches for row in _rows(run, match)]
    if not rows:
        data = flat_settings(recorded).get("data.class_path", "other data")
        note = (
            f"the settings of the run ({data}, {run.primary_score} against {run.ind}) are those "
            "of no table; docs/how-to/reproduce.md lists the configs that are"
        )
        return PaperComparison([], [note])
    return PaperComparison(rows, list(_notes(run, matches)))


def _rows(run: RunResults, match: Match) -> list[PaperRow]:
    """Return the rows of a method for the datasets of the run, and the average over all of them."""
    method, all_published = match.method, results_of(match.method)
    is_comparable = not run.unfinished and all(c.name in SMALL for c in match.changes)
    results: list[ResultRow] = []
    rows = []
    for published in all_published:
        if published.dataset != AVERAGE:
            result = _best(run, published.dataset, method.scores)
        elif len(results) == len(all_published) - 1:
            result = _average(run, results, method.scores)
        else:
            # The mean over some of the datasets cannot be compared with that over all.
            result = None
        if result is None:
            continue
        results.append(result)
        if len(method.scores) > 1:
            result = result._replace(score=f"best of {', '.join(method.scores)}")
        rows.append(PaperRow(method, published, result, is_comparable))
    return rows


def _best(run: RunResults, dataset: str, scores: Sequence[str]) -> ResultRow | None:
    """Return the run's result on a dataset by the score of the highest AUROC, if it was run."""
    group = run.header.groups.get(dataset, dataset)
    found = [
        result
        for result in run.results
        if result[:2] == (group, dataset) and result.score in scores
    ]
    return (
        max(found, key=lambda result: np.nan_to_num(result.metrics.auroc, nan=-1))
        if found
        else None
    )


def _average(run: RunResults, results: Sequence[ResultRow], scores: Sequence[str]) -> ResultRow:
    """Return the mean over results on several datasets, which may be of different scores."""
    # The run has it if it is over all of its datasets and of one score.
    averaged = {result.dataset for result in results}
    is_average = averaged == {result.dataset for result in run.results if not result.is_mean}
    group = ALL if is_average else "paper"
    if is_average and len(scores) == 1:
        (own,) = (row for row in run.results if row[:3] == (group, AVERAGE, scores[0]))
        return own

    columns = [run.table.scores.index(score) for score in scores]
    table = replace(run.table, scores=list(scores), values=run.table.values[:, columns])
    # All datasets share the draws of in-distribution images, so means are taken draw by draw.
    drawn = replicates(table)
    of_mean = np.mean([drawn[result[:3]] for result in results], axis=0)
    metrics = DetectionMetrics(*np.mean([result.metrics for result in results], axis=0).tolist())
    return ResultRow(
        group=group,
        dataset=AVERAGE,
        score=scores[0],
        metrics=metrics,
        intervals=intervals(of_mean),
    )


def _notes(run: RunResults, matches: Sequence[Match]) -> Iterator[str]:
    """Yield what limits the comparison."""
    if run.unfinished:
        yield f"not comparable: {run.unfinished}"
    yield from _notes_on_changes(run, matches)
    datasets = [row.dataset for row in results_of(matches[0].method)[:-1]]
    missing = [name for name in datasets if name not in run.header.datasets]
    if missing:
        yield f"no average, because {', '.join(missing)} {_was(missing)} not run"
    if left_out := sum(run.left_out.values()):
        yield f"{left_out:,} images left out"
    methods = [match.method for match in matches]
    for settings in dict.fromkeys(method.not_given for method in methods if method.not_given):
        yield f"the paper's text does not give {settings}"
    for scores in dict.fromkeys(method.scores for method in methods):
        if len(scores) > 1:
            yield f"the best of {', '.join(scores)} on each dataset, chosen on the test set"
    if spread := max(method.spread for method in methods):
        percent = f"{100 * spread:g}"
        yield f"spread of GDM: {percent}, the largest standard deviation of the paper's four runs"


def _notes_on_changes(run: RunResults, matches: Sequence[Match]) -> Iterator[str]:
    """Yield which settings of the run are not those of the methods."""
    methods: dict[tuple[str, ...], list[str]] = {}
    small: dict[str, None] = {}
    for match in matches:
        large = tuple(str(change) for change in match.changes if change.name not in SMALL)
        methods.setdefault(large, []).append(match.method.name)
        small |= {str(change): None for change in match.changes if change.name in SMALL}
    for large, names in methods.items():
        if large:
            more = f", and {len(large) - NAMED_CHANGES} more" if len(large) > NAMED_CHANGES else ""
            named = ", ".join(large[:NAMED_CHANGES])
            yield f"{', '.join(names)}: not comparable, because {named}{more}"
    if small:
        yield f"comparable, although {', '.join(small)}"
    if names_not_default(run) is None:
        yield "only settings that the config names were compared: run.json lacks not_default"


def _was(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"
