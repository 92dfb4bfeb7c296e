"""The page that compares runs: one file that opens from disk and loads nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...metrics.bootstrap import METRIC_NAMES
from ...names import FULL_SPECTRUM
from ...runs.files import atomic_write
from ..comparison import ComparedScore, run_letter
from ..results import RunResults
from ..style import COLOURS, colour_of
from .plot_data import curve_data, points_per_curve
from .record_facts import facts
from .rendering import render
from .scales import metric_scales


def write_comparison_page(
    runs: Sequence[RunResults], compared: Sequence[ComparedScore], path: Path
) -> None:
    """Write the page that compares runs.

    Raises:
        InputError: The file could not be written.
    """
    colours = [colour_of(number) for number in range(len(runs))]
    letters = [run_letter(number) for number in range(len(runs))]
    points = points_per_curve(len(runs) * len(compared))
    data = {
        "colour_count": len(COLOURS),
        "runs": [
            {"letter": letter, "name": run.name, "colour": colour}
            for letter, run, colour in zip(letters, runs, colours, strict=True)
        ],
        "comparisons": [_comparison_data(runs, score, points) for score in compared],
    }
    context = {
        "title": "Comparison",
        "subtitle": f"{len(runs)} runs against {runs[0].ind}",
        "unfinished": "",
        "runs": runs,
        "letters": letters,
        "colours": colours,
        "facts": [facts(run) for run in runs],
        "compared": compared,
        "scales": metric_scales(result for score in compared for result in score.results),
    }
    page = render("comparison_page.html.j2", data, context)
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _comparison_data(
    runs: Sequence[RunResults], score: ComparedScore, points: int
) -> dict[str, Any]:
    """Return the data of one compared score: curves, metrics and differences of each run."""
    metrics: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for metric in METRIC_NAMES:
        metrics[metric] = [
            [getattr(result.metrics, metric), *result.intervals.get(metric, (None, None))]
            for result in score.results
        ]
        differences[metric] = [[value, *ends] for value, ends in score.differences[metric]]
    return {
        "group": score.group,
        "dataset": score.dataset,
        "scores": list(score.scores),
        "curves": _curves(runs, score, points),
        "metrics": metrics,
        "differences": differences,
    }


def _curves(
    runs: Sequence[RunResults], score: ComparedScore, points: int
) -> list[dict[str, Any]] | None:
    """Return the ROC curve of each run; None for a mean over datasets."""
    if score.results[0].is_mean:
        return None
    curves = []
    for run, name in zip(runs, score.scores, strict=True):
        k, number = run.header.scores.index(name), run.header.datasets.index(score.dataset)
        ind = run.table.in_distribution(FULL_SPECTRUM if score.results[0].is_full_spectrum else "")
        curves.append(curve_data(ind[:, k], run.table.of(number)[:, k], points))
    return curves
