"""The result table, in the terminal and as CSV, and the table that compares runs."""

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import InputError
from ..metrics.bootstrap import METRIC_NAMES, Key, intervals, replicates
from ..metrics.detection import DetectionMetrics
from ..metrics.table import Interval, ResultRow, ScoreTable, result_rows
from ..runs.files import atomic_write
from ..scores.baselines.names import BASELINES
from .cascade_curve import Point
from .results import Results


def terminal() -> Console:
    """Prints what it is given as it is: nothing in a name is markup. A log is wide enough for the tables."""
    return Console(
        width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False
    )


def result_table(
    rows: Sequence[ResultRow],
    headline: str,
    datasets: Sequence[str],
    sizes: Mapping[str, int],
    left_out: Mapping[str, int],
    accuracy: float,
    unfinished: str = "",
) -> Table:
    """In percent; the headline score bold, the classifier's own dim.

    Args:
        rows: of the table.
        headline: name of the first score.
        datasets: names of the data sets, the in-distribution one first.
        sizes, left_out: by data set, images with scores and without.
        accuracy: of the classifier, in [0, 1]; NaN if not known.
        unfinished: in words, that the run has not ended; empty for one that has.
    """
    ind = datasets[0]
    known = f"Classifier accuracy {100 * accuracy:.2f} on " if not math.isnan(accuracy) else ""
    aside = f", {left_out[ind]} left out" if left_out.get(ind) else ""
    about_run = f"{unfinished}; " if unfinished else ""
    table = _table(
        f"Out-of-distribution detection against {ind}",
        f"{about_run}in percent, with 95 % intervals; higher is better but for FPR@95. {known}{sizes[ind]} images of {ind}{aside}.",
    )
    for name in ("group", "OOD set", "score"):
        table.add_column(name, overflow="fold")
    for name in ("AUROC", "FPR@95", "AUPR-in", "AUPR-out"):
        table.add_column(name, justify="right")
    last, about = None, iter([""])
    for row in rows:
        here = (row.group, row.dataset)
        if last != here:
            if last:
                table.add_section()
            about = iter(_about(row.dataset, sizes, left_out))
        style = "bold" if row.score == headline else "dim" if row.score in BASELINES else ""
        shown = [
            _shown(f"{100 * value:.2f}", row.intervals.get(name))
            for name, value in list(row.metrics._asdict().items())[:4]
        ]
        names = [Text(row.group if last != here else ""), Text(next(about, "")), Text(row.score)]
        table.add_row(*names, *shown, style=style)
        last = here
    return table


def write_csv(rows: Sequence[ResultRow], path: Path) -> None:
    """``metrics.csv``: shares in [0, 1], with the ends of the intervals."""
    ends = [f"{name}_{end}" for name in METRIC_NAMES for end in Interval._fields]
    with atomic_write(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["group", "dataset", "score", *DetectionMetrics._fields, *ends])
        for row in rows:
            of_row = [
                value
                for name in METRIC_NAMES
                for value in row.intervals.get(name, Interval(math.nan, math.nan))
            ]
            writer.writerow([row.group, row.dataset, row.score, *row.metrics, *of_row])


@dataclass(frozen=True)
class Compared:
    """A line of the comparison: a score on a set, in each run.

    Attributes:
        group, dataset: as in a :class:`~diffguard_pl.metrics.table.ResultRow`.
        score: name of the score in each run; they differ where headline scores are compared.
        rows: of each run.
        less_first: for AUROC and FPR@95, and for each run but the first, by how much it is above the first one, and the interval
            of that, on the images that both have.
    """

    group: str
    dataset: str
    score: tuple[str, ...]
    rows: tuple[ResultRow, ...]
    less_first: dict[str, list[tuple[float, Interval]]]


def compare(runs: Sequence[Results]) -> list[Compared]:
    """What the runs have in common: their headline scores, then each score that all of them have.

    Sets are in the groups of the first run. The mean over a group is left out unless all runs have the same sets in it.

    Raises:
        InputError: the runs share no images, or not the in-distribution set.
    """
    first, draws = runs[0], [_paired(runs[0], run) for run in runs[1:]]
    by_key = [_comparable(run.rows, run, first) for run in runs]
    lines = []
    for group, dataset in dict.fromkeys((group, dataset) for group, dataset, _ in by_key[0]):
        headlines = tuple(run.header.scores[0] for run in runs)
        shared = [
            score
            for score in first.header.scores
            if all(score in run.header.scores for run in runs)
        ]
        same = [(score,) * len(runs) for score in shared]
        for names in dict.fromkeys([headlines, *same]):
            keys = [(group, dataset, name) for name in names]
            if not all(key in rows for key, rows in zip(keys, by_key, strict=True)):
                continue
            of_line = tuple(rows[key] for key, rows in zip(keys, by_key, strict=True))
            if any(keys[0] not in a_rows for _, _, a_rows, _ in draws):
                continue
            less: dict[str, list[tuple[float, Interval]]] = {figure: [] for figure in METRIC_NAMES}
            for (a, b, a_rows, b_rows), key in zip(draws, keys[1:], strict=True):
                difference = intervals(b[key] - a[keys[0]])
                for figure in METRIC_NAMES:
                    value = getattr(b_rows[key].metrics, figure) - getattr(
                        a_rows[keys[0]].metrics, figure
                    )
                    less[figure].append((value, difference[figure]))
            lines.append(Compared(group, dataset, names, of_line, less))
    if not lines:
        raise InputError(
            f"{first.folder} and {runs[1].folder}: have no data set and score in common"
        )
    return lines


def _comparable(rows: Sequence[ResultRow], run: Results, first: Results) -> dict[Key, ResultRow]:
    """GuidanceInputs of a run in the groups of the first one, without means over other sets than those of the first one."""
    found = {}
    for row in rows:
        if row.dataset != "mean":
            found[_group(first, row.dataset), row.dataset, row.score] = row
        elif _members(run, row.group) == _members(first, row.group):
            found[row.group, row.dataset, row.score] = row
    return found


def _group(run: Results, dataset: str) -> str:
    return run.header.groups.get(dataset, dataset)


def _members(run: Results, group: str) -> set[str]:
    """The sets of a group."""
    return {name for name in run.header.datasets[1:] if _group(run, name) == group}


def _paired(
    a: Results, b: Results
) -> tuple[
    dict[Key, np.ndarray], dict[Key, np.ndarray], dict[Key, ResultRow], dict[Key, ResultRow]
]:
    """Draws and rows of two runs on the images that both have scores of, the same images in each draw."""
    if a.header.datasets[0] != b.header.datasets[0]:
        raise InputError(
            f"{a.folder} is on {a.header.datasets[0]} and {b.folder} on {b.header.datasets[0]}: runs can be compared that have one "
            "in-distribution set"
        )
    names = ["dataset", "index", "path"]
    columns = [frame.loc[frame["error"].isna(), names] for frame in (a.frame, b.frame)]
    common = columns[0].merge(columns[1], on=names)
    if not (common["dataset"] == a.header.datasets[0]).any() or common["dataset"].nunique() < 2:
        raise InputError(
            f"{a.folder} and {b.folder}: have no images in common, by data set, index and path"
        )
    tables: list[ScoreTable] = []
    datasets = [name for name in a.header.datasets if (common["dataset"] == name).any()]
    for run in (a, b):
        frame = common.merge(run.frame, on=names)  # in the order of what is common
        numbers = frame["dataset"].map({name: d for d, name in enumerate(datasets)}).to_numpy()
        groups = {name: _group(a, name) for name in datasets[1:]}
        tables.append(
            ScoreTable(
                run.header.scores,
                datasets,
                groups,
                frame[run.header.scores].to_numpy(float),
                numbers,
            )
        )
    whole = {group for group in groups.values() if _members(a, group) <= set(datasets)}
    rows = [
        {
            (row.group, row.dataset, row.score): row
            for row in result_rows(table)
            if row.dataset != "mean"
            or row.group in whole  # else it is over fewer sets than the runs' own
        }
        for table in tables
    ]
    return replicates(tables[0]), replicates(tables[1]), rows[0], rows[1]


def cascade_table(curve: Sequence[Point], budget: float | None) -> Table:
    """In percent; the run's own budget bold."""
    sets = [(row.group, row.dataset) for row in curve[0].metrics]
    table = _table(
        "Cascades of other budgets",
        "in percent: AUROC / FPR@95. Diffused: of all images, of in-distribution ones; rows: of the diffusion model's.",
    )
    for name in ("budget", "diffused", "of InD", "nfe"):
        table.add_column(name, justify="right")
    for group, dataset in sets:
        table.add_column(f"{group} mean" if dataset == "mean" else dataset, justify="right")
    for point in curve:
        shown = [
            f"{100 * row.metrics.auroc:.2f} / {100 * row.metrics.fpr95:.2f}"
            for row in point.metrics
        ]
        shares = [
            f"{100 * share:.1f}"
            for share in (point.sent, next(iter(point.of_sets.values())), point.nfe)
        ]
        table.add_row(
            f"{point.budget:g}", *shares, *shown, style="bold" if point.budget == budget else ""
        )
    return table


def comparison_table(runs: Sequence[Results], lines: Sequence[Compared]) -> Table:
    """In percent; each run after the first with its difference to the first."""
    caption = "in percent, with 95 % intervals; differences are to run A, paired, on the images that both have: "
    names = [f"{run.name} ({run.unfinished})" if run.unfinished else run.name for run in runs]
    legend = "; ".join(f"{letter(i)} {name}" for i, name in enumerate(names))
    table = _table(f"Against {runs[0].header.datasets[0]}", caption + legend)
    for name in ("OOD set", "score", "run"):
        table.add_column(name, overflow="fold")
    for name in ("AUROC", "less A", "FPR@95", "less A"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_section()
        for i, row in enumerate(line.rows):
            shown = []
            for name in METRIC_NAMES:
                shown.append(
                    _shown(f"{100 * getattr(row.metrics, name):.2f}", row.intervals.get(name))
                )
                shown.append(
                    _shown(
                        f"{100 * line.less_first[name][i - 1][0]:+.2f}",
                        line.less_first[name][i - 1][1],
                    )
                    if i
                    else Text()
                )
            about = (
                [
                    f"{line.group} {line.dataset}" if line.dataset == "mean" else line.dataset,
                    row.score,
                ]
                if i == 0
                else ["", row.score]
            )
            style = "bold" if row.score == runs[i].header.scores[0] else ""
            table.add_row(*map(Text, about), letter(i), *shown, style=style)
    return table


def letter(run: int) -> str:
    """What the n-th run is called in a comparison."""
    return (
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[run]
        if run < 26
        else f"{letter(run // 26 - 1)}{letter(run % 26)}"
    )


def write_comparison(runs: Sequence[Results], lines: Sequence[Compared], path: Path) -> None:
    """A line for each score, set and run; shares in [0, 1]."""
    ends = [f"{name}{part}" for name in METRIC_NAMES for part in ("", "_low", "_high")]
    less = [f"{name}_less_first{part}" for name in METRIC_NAMES for part in ("", "_low", "_high")]
    with atomic_write(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["group", "dataset", "run", "folder", "score", *ends, *less])
        for line in lines:
            for i, (run, score, row) in enumerate(zip(runs, line.score, line.rows, strict=True)):
                own = [
                    value
                    for name in METRIC_NAMES
                    for value in (getattr(row.metrics, name), *row.intervals[name])
                ]
                than = [
                    value
                    for name in METRIC_NAMES
                    for value in (line.less_first[name][i - 1][0], *line.less_first[name][i - 1][1])
                ]
                names = [line.group, line.dataset, run.name, run.folder.resolve(), score]
                writer.writerow([*names, *own, *(than if i else [""] * len(less))])


def _table(title: str, caption: str) -> Table:
    """An empty table; neither text is markup."""
    return Table(title=Text(title, "table.title"), caption=Text(caption, "table.caption"))


def _about(dataset: str, sizes: Mapping[str, int], left_out: Mapping[str, int]) -> list[str]:
    """What stands beside the first scores of a set: its name, how many images it has, how many could not be used."""
    if dataset not in sizes:
        return [dataset]
    aside = [f"{left_out[dataset]} left out"] if left_out.get(dataset) else []
    return [dataset, f"{sizes[dataset]} images", *aside]


def _shown(figure: str, interval: Interval | None) -> Text:
    """A figure with its interval, which steps back."""
    if interval is None or math.isnan(interval.low):
        return Text(figure)
    return Text.assemble(
        figure, (f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]", "dim not bold")
    )
