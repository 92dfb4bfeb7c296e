"""Tables of results, cascades and comparisons, in the terminal and as CSV files."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..metrics.bootstrap import METRIC_NAMES
from ..metrics.detection import DetectionMetrics
from ..metrics.table import Interval, ResultRow
from ..names import FULL_SPECTRUM
from ..runs.csv_files import write_csv
from ..scores.baselines.names import BASELINES
from .cascade_curve import CascadePoint
from .comparison import ComparedScore, run_letter
from .costs import ScoreCost
from .paper_comparison import PaperComparison, PaperRow
from .results import RunResults

UNKNOWN = Interval(math.nan, math.nan)
PAPER_COLUMNS = (
    "paper_table",
    "paper_method",
    "paper_spread",
    "paper_auroc",
    "auroc_differs",
    "paper_fpr95",
    "fpr95_differs",
)
"""Columns of ``metrics.csv`` after a comparison with the paper."""


def terminal() -> Console:
    """Return a console that prints names as they are, without interpreting markup.

    Where the output is not a terminal, such as in a log, it is 120 columns wide.
    """
    width = None if sys.stdout.isatty() else 120
    return Console(width=width, markup=False, emoji=False, highlight=False)


def result_table(
    results: Sequence[ResultRow],
    primary_score: str,
    datasets: Sequence[str],
    sizes: Mapping[str, int],
    left_out: Mapping[str, int],
    accuracy: float,
    unfinished: str = "",
    full_spectrum_accuracy: float = math.nan,
) -> Table:
    """Build the result table, in percent; the primary score is bold, baselines are dim.

    Args:
        results: Results to show.
        primary_score: Name of the primary score.
        datasets: Names of the datasets, the in-distribution one first.
        sizes: Number of scored images by dataset.
        left_out: Number of images by dataset that could not be used.
        accuracy: Accuracy of the classifier in [0, 1]; NaN if unknown.
        unfinished: Note that the run is unfinished. Defaults to "", for a finished run.
        full_spectrum_accuracy: Accuracy with the covariate-shifted datasets. Defaults to NaN,
            without such datasets.
    """
    ind = datasets[0]
    notes = [unfinished] if unfinished else []
    notes.append("in percent, with 95 % intervals")
    notes.append("higher is better except for FPR@95")
    notes.append(f"{ind}: {', '.join(_image_counts(ind, sizes, left_out))}")
    if not math.isnan(accuracy):
        notes.append(f"classifier accuracy {100 * accuracy:.2f}")
    if any(result.is_full_spectrum for result in results):
        shifted = f"{FULL_SPECTRUM}*: covariate-shifted images count as in-distribution"
        if not math.isnan(full_spectrum_accuracy):
            shifted += f", classifier accuracy on both {100 * full_spectrum_accuracy:.2f}"
        notes.append(shifted)
    table = _table(f"Out-of-distribution detection against {ind}", "; ".join(notes))
    for name in ("group", "OOD dataset", "score"):
        table.add_column(name, overflow="fold")
    for name in ("AUROC", "FPR@95", "AUPR-in", "AUPR-out"):
        table.add_column(name, justify="right")

    previous = None
    for result in results:
        current = (result.group, result.dataset)
        is_first = current != previous
        if is_first:
            if previous is not None:
                table.add_section()
            # Name and image counts stand one below the other, beside the first scores.
            notes_left = iter([result.dataset, *_image_counts(result.dataset, sizes, left_out)])
        group = result.group if is_first else ""
        names = [Text(group), Text(next(notes_left, "")), Text(result.score)]
        metrics = [
            _value_and_interval(f"{100 * value:.2f}", result.intervals.get(name))
            for name, value in zip(DetectionMetrics._fields[:4], result.metrics[:4], strict=True)
        ]
        table.add_row(*names, *metrics, style=_style(result.score, primary_score))
        previous = current
    return table


def cascade_table(points: Sequence[CascadePoint], budget: float | None) -> Table:
    """Build the table of a cascade's budgets, in percent; the run's budget is bold."""
    table = _table(
        "Cascade at other budgets",
        "in percent: fraction of all images diffused, of in-distribution images diffused, "
        "NFE relative to diffusing all images, AUROC / FPR@95",
    )
    for name in ("budget", "diffused", "InD diffused", "NFE"):
        table.add_column(name, justify="right")
    for result in points[0].results:
        table.add_column(result.title, justify="right")
    for point in points:
        fractions = (point.diffused, point.diffused_ind, point.nfe)
        cells = [f"{point.budget:g}", *(f"{100 * fraction:.1f}" for fraction in fractions)]
        for result in point.results:
            cells.append(f"{100 * result.metrics.auroc:.2f} / {100 * result.metrics.fpr95:.2f}")
        table.add_row(*cells, style="bold" if point.budget == budget else "")
    return table


def cost_table(costs: Sequence[ScoreCost]) -> Table:
    """Build the table of what scores cost and reach, in percent; bold: the best for its cost."""
    table = _table(
        "Scores by cost",
        "NFE of an image for the score alone; seconds are estimated from them; fitted to "
        "in-distribution images; AUROC in percent with 95 % intervals; bold: no score is better "
        "for as many NFE or fewer (of equal ones, the first)",
    )
    table.add_column("score", overflow="fold")
    table.add_column("family")
    for name in ("NFE", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("fitted")
    groups = list(costs[0].results)
    for group in groups:
        table.add_column(group, justify="right")
    for cost in costs:
        cells = [Text(cost.score), Text(cost.family), Text(f"{cost.nfe:.4g}")]
        cells += [Text(f"{cost.seconds:.3g}"), Text("yes" if cost.fitted else "")]
        for group in groups:
            result = cost.results[group]
            cell = _value_and_interval(
                f"{100 * result.metrics.auroc:.2f}", result.intervals.get("auroc")
            )
            if group in cost.best:
                cell.stylize("bold")
            cells.append(cell)
        table.add_row(*cells)
    return table


def write_costs_csv(costs: Sequence[ScoreCost], path: Path) -> None:
    """Write ``costs.csv``: a line for each score, with its AUROC in [0, 1] by group.

    Raises:
        InputError: The file could not be written.
    """
    groups = list(costs[0].results)
    header = ["score", "family", "nfe", "seconds", "fitted"]
    for group in groups:
        header += [f"{group}_{name}" for name in ("auroc", "auroc_low", "auroc_high", "best")]
    lines = []
    for cost in costs:
        line: list[Any] = [cost.score, cost.family, cost.nfe, cost.seconds, cost.fitted]
        for group in groups:
            result = cost.results[group]
            line += [result.metrics.auroc, *result.intervals.get("auroc", UNKNOWN)]
            line.append(group in cost.best)
        lines.append(line)
    write_csv(header, lines, path)


def comparison_table(runs: Sequence[RunResults], compared: Sequence[ComparedScore]) -> Table:
    """Build the table that compares runs, in percent; primary scores are bold."""
    names = []
    for number, run in enumerate(runs):
        note = f" ({run.unfinished})" if run.unfinished else ""
        names.append(f"{run_letter(number)} {run.name}{note}")
    table = _table(
        f"Out-of-distribution detection against {runs[0].ind}",
        "in percent, with 95 % intervals; vs A: paired difference to run A on the images that "
        f"both scored; runs: {'; '.join(names)}",
    )
    for name in ("OOD dataset", "score", "run"):
        table.add_column(name, overflow="fold")
    for name in ("AUROC", "vs A", "FPR@95", "vs A"):
        table.add_column(name, justify="right")

    for score in compared:
        table.add_section()
        dataset = score.results[0].title
        for number, result in enumerate(score.results):
            cells = [Text(dataset if number == 0 else ""), Text(result.score)]
            cells.append(Text(run_letter(number)))
            for metric in METRIC_NAMES:
                value = getattr(result.metrics, metric)
                interval = result.intervals.get(metric)
                cells.append(_value_and_interval(f"{100 * value:.2f}", interval))
                if number == 0:
                    cells.append(Text())
                else:
                    difference, ends = score.differences[metric][number - 1]
                    cells.append(_value_and_interval(f"{100 * difference:+.2f}", ends))
            is_primary = result.score == runs[number].primary_score
            table.add_row(*cells, style="bold" if is_primary else "")
    return table


def paper_table(paper: PaperComparison) -> Table:
    """Build the table that shows the paper's results beside the run's, in percent.

    A star marks a result that differs by more than its interval and the paper's spread. The notes
    of the comparison are not part of the table.
    """
    notes = ["in percent, with 95 % intervals", "paper: published value, and the run's minus it"]
    if any(row.differs(metric) for row in paper.rows for metric in METRIC_NAMES):
        notes.append("* differs by more than the interval and the paper's spread")
    table = _table("Beside the paper (arXiv 2308.07687)", "; ".join(notes))
    for name in ("method", "OOD dataset"):
        table.add_column(name, overflow="fold")
    for name in ("AUROC", "paper", "FPR@95", "paper"):
        table.add_column(name, justify="right")

    previous = None
    for row in paper.rows:
        if row.method != previous:
            table.add_section()
            # Name, table and score stand one below the other, beside the first datasets.
            about = iter([row.method.name, f"Table {row.method.table}, {row.result.score}"])
        cells = [Text(next(about, "")), Text(row.published.dataset)]
        for metric in METRIC_NAMES:
            value = f"{100 * getattr(row.result.metrics, metric):.2f}"
            cells.append(_value_and_interval(value, row.result.intervals.get(metric)))
            cells.append(_published_value(row, metric))
        table.add_row(*cells, style="" if row.is_comparable else "dim")
        previous = row.method
    return table


def _published_value(row: PaperRow, metric: str) -> Text:
    """Return a published value and the difference to it; empty if not published."""
    value = getattr(row.published, metric)
    if value is None:
        return Text()
    differs = row.differs(metric)
    mark, style = ("*", "bold") if differs else (" ", "")
    return Text.assemble(
        f"{100 * value:.2f} ", (f"{100 * row.difference(metric):+.2f}{mark}", style)
    )


def write_metrics_csv(
    results: Sequence[ResultRow], path: Path, paper: PaperComparison | None = None
) -> None:
    """Write ``metrics.csv``: fractions in [0, 1] with the ends of their intervals.

    Args:
        results: Result table.
        path: Path of the file.
        paper: Comparison with the paper, which adds the columns ``PAPER_COLUMNS``, and lines for
            its results that the table does not have. Defaults to none.

    Raises:
        InputError: The file could not be written.
    """
    header = ["group", "dataset", "score", *DetectionMetrics._fields]
    header += [f"{metric}_{end}" for metric in METRIC_NAMES for end in Interval._fields]
    if paper:
        header += PAPER_COLUMNS
        known = {result[:3] for result in results}
        results = [*results, *(row.result for row in paper.rows if row.result[:3] not in known)]
    lines = []
    for result in results:
        line = [result.group, result.dataset, result.score, *result.metrics]
        for metric in METRIC_NAMES:
            line += result.intervals.get(metric, UNKNOWN)
        if paper:
            line += _paper_cells(paper.by_result.get(result[:3]))
        lines.append(line)
    write_csv(header, lines, path)


def _paper_cells(row: PaperRow | None) -> list[Any]:
    """Return the values of ``PAPER_COLUMNS``; empty without a published result."""
    if row is None:
        return [""] * len(PAPER_COLUMNS)
    cells: list[Any] = [row.method.table, row.method.name, row.method.spread]
    for metric in METRIC_NAMES:
        cells.append(getattr(row.published, metric))
        cells.append({True: "yes", False: "no", None: ""}[row.differs(metric)])
    return cells


def write_cascade_csv(points: Sequence[CascadePoint], path: Path) -> None:
    """Write ``cascade.csv``: one line per budget and dataset, fractions in [0, 1].

    Raises:
        InputError: The file could not be written.
    """
    header = ["budget", "diffused", "diffused_ind", "nfe", "group", "dataset", *METRIC_NAMES]
    header += [f"{metric}_{end}" for metric in METRIC_NAMES for end in Interval._fields]
    lines = []
    for point in points:
        of_point = [point.budget, point.diffused, point.diffused_ind, point.nfe]
        for result in point.results:
            line = [*of_point, result.group, result.dataset]
            line += [getattr(result.metrics, metric) for metric in METRIC_NAMES]
            for metric in METRIC_NAMES:
                line += result.intervals[metric]
            lines.append(line)
    write_csv(header, lines, path)


def write_comparison_csv(
    runs: Sequence[RunResults], compared: Sequence[ComparedScore], path: Path
) -> None:
    """Write the comparison: one line per dataset, score and run, fractions in [0, 1].

    The columns ``*_minus_first`` are empty for the first run.

    Raises:
        InputError: The file could not be written.
    """
    parts = ["", *(f"_{end}" for end in Interval._fields)]
    header = ["group", "dataset", "run", "folder", "score"]
    header += [f"{metric}{part}" for metric in METRIC_NAMES for part in parts]
    header += [f"{metric}_minus_first{part}" for metric in METRIC_NAMES for part in parts]
    lines = []
    for score in compared:
        for number, (run, result) in enumerate(zip(runs, score.results, strict=True)):
            line: list[Any] = [score.group, score.dataset, run.name, run.folder.resolve()]
            line.append(result.score)
            for metric in METRIC_NAMES:
                line += [getattr(result.metrics, metric), *result.intervals[metric]]
            for metric in METRIC_NAMES:
                if number == 0:
                    line += [""] * len(parts)
                else:
                    difference, interval = score.differences[metric][number - 1]
                    line += [difference, *interval]
            lines.append(line)
    write_csv(header, lines, path)


def _table(title: str, caption: str) -> Table:
    """Return an empty table whose title and caption are not interpreted as markup."""
    return Table(title=Text(title, "table.title"), caption=Text(caption, "table.caption"))


def _style(score: str, primary_score: str) -> str:
    if score == primary_score:
        return "bold"
    return "dim" if score in BASELINES else ""


def _image_counts(dataset: str, sizes: Mapping[str, int], left_out: Mapping[str, int]) -> list[str]:
    """Return how many images of a dataset were scored and left out; empty for a mean."""
    if dataset not in sizes:
        return []
    counts = [f"{sizes[dataset]} images"]
    if left_out.get(dataset):
        counts.append(f"{left_out[dataset]} left out")
    return counts


def _value_and_interval(value: str, interval: Interval | None) -> Text:
    """Return a value followed by its interval in dim type, if it has one."""
    if interval is None or math.isnan(interval.low):
        return Text(value)
    ends = f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    return Text.assemble(value, (ends, "dim not bold"))
