"""The command ``diffguard-pl report RUN...``: rebuilds the report of a run, or compares runs.

It reads the folders of the runs and needs neither models nor data.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .errors import one_line_errors

if TYPE_CHECKING:
    from ..report.paper_comparison import PaperComparison
    from ..report.results import RunResults


def main(args: list[str] | None = None) -> None:
    """Report on runs.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="diffguard-pl report",
        description="Rebuild the report of each run, and compare the runs if there are several.",
    )
    parser.add_argument("run", type=Path, nargs="+", help="folder of a run")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="page of the comparison, .html, or picture of --against, .png; its table is written "
        "next to it as .csv (default: comparison.html, or curve.png)",
    )
    parser.add_argument(
        "--against",
        action="append",
        metavar="SETTING",
        help="draw the AUROC of the runs against a setting in which they differ, such as "
        "model.guidance.scale, in place of a comparison; a second one makes a curve of each value",
    )
    parser.add_argument(
        "--leaderboard",
        choices=["openood"],
        help="also write the results as OpenOOD v1.5's evaluator and leaderboard have them, into "
        "the folder openood/ of the run; of several runs, trainings of one classifier, mean and "
        "deviation, into openood/ beside the page of the comparison",
    )
    parser.add_argument(
        "--compare",
        choices=["paper"],
        help="show the published results of the paper beside those of each run",
    )
    given = parser.parse_args(args)

    with one_line_errors():
        if given.against and given.leaderboard:
            raise InputError("--leaderboard: cannot be combined with --against; give one of them")
        if given.against and given.compare:
            raise InputError("--compare: cannot be combined with --against; give one of them")
        if given.against:
            report_curve(given.run, given.against, given.out or Path("curve.png"))
        else:
            page = given.out or Path("comparison.html")
            runs = report(given.run, page, given.compare == "paper")
            if given.leaderboard:
                write_leaderboard(runs, page)


def report_curve(folders: Sequence[Path], settings: Sequence[str], picture: Path) -> None:
    """Write the results of runs against settings as CSV and PNG, and print the table.

    Args:
        folders: Folders of the runs.
        settings: Settings in which they differ, the horizontal axis first.
        picture: Path of the PNG; the CSV is written next to it.

    Raises:
        InputError: A run cannot be read, the runs do not form a curve, or the picture is not
            ``.png``.
    """
    from ..report.results import read_results
    from ..report.setting_curve import curve_table, draw_curve, setting_curve, write_curve_csv
    from ..report.tables import terminal

    if picture.suffix.lower() != ".png":
        raise InputError(f"--out {picture}: must end in .png with --against")
    points = setting_curve([read_results(folder) for folder in folders], settings)
    table = picture.with_suffix(".csv")
    write_curve_csv(points, table)
    draw_curve(points, picture)
    terminal().print(curve_table(points))
    print(f"table: {table}\n plot: {picture}")


def report(
    folders: Sequence[Path], comparison: Path | None = None, with_paper: bool = False
) -> "list[RunResults]":
    """Build and print the report of each run, and compare the runs if there are several.

    Args:
        folders: Folders of the runs.
        comparison: Path of the comparison page; None to compare nothing. Defaults to None.
        with_paper: Whether to show the published results beside those of each run. Defaults to
            False.

    Returns:
        Results of the runs.

    Raises:
        InputError: A run cannot be read, a file cannot be written, or the page is not ``.html``.
    """
    from ..report.build import build
    from ..report.comparison import compare
    from ..report.page.comparison_page import write_comparison_page
    from ..report.repeats import describe_repeats
    from ..report.results import read_results
    from ..report.tables import (
        cascade_table,
        comparison_table,
        cost_table,
        paper_table,
        result_table,
        terminal,
        write_comparison_csv,
    )

    if comparison is not None and comparison.suffix.lower() != ".html":
        raise InputError(
            f"--out {comparison}: must end in .html; the table of the comparison is written next "
            "to it as .csv"
        )
    console = terminal()
    runs = [read_results(folder) for folder in folders]
    for run in runs:
        paper = _comparison_with_paper(run) if with_paper else None
        page = build(run, paper)[-1]
        table = result_table(
            run.results,
            run.primary_score,
            run.header.datasets,
            run.sizes,
            run.left_out,
            run.accuracy,
            run.unfinished,
            run.full_spectrum_accuracy,
        )
        console.print(table)
        if line := describe_repeats(run.frame, run.header.datasets):
            warnings.warn(line, stacklevel=2)
        if run.costs:
            console.print(cost_table(run.costs))
        if run.cascade_curve:
            console.print(cascade_table(run.cascade_curve, run.budget))
        if paper:
            console.print(paper_table(paper))
            for note in paper.notes:
                console.print(f"    paper: {note}", soft_wrap=True)
        elif paper is not None:
            console.print(f"    paper: no comparison: {paper.notes[0]}", soft_wrap=True)
        console.print(f"   report: {page}", soft_wrap=True)

    if len(runs) > 1 and comparison is not None:
        compared = compare(runs)
        write_comparison_csv(runs, compared, comparison.with_suffix(".csv"))
        write_comparison_page(runs, compared, comparison)
        console.print(comparison_table(runs, compared))
        console.print(f"comparison: {comparison}", soft_wrap=True)
    return runs


def write_leaderboard(runs: "Sequence[RunResults]", comparison: Path) -> None:
    """Write OpenOOD's tables, and print where the leaderboard's lines are.

    Args:
        runs: Results of the runs.
        comparison: Path of the comparison page, beside which the tables of several runs go.

    Raises:
        InputError: A run has other datasets than the leaderboard, or a file cannot be written.
    """
    from ..report.leaderboard import write_openood

    parent = runs[0].folder if len(runs) == 1 else comparison.parent
    for path in write_openood(runs, parent / "openood"):
        print(f"leaderboard: {path}")


def _comparison_with_paper(run: "RunResults") -> "PaperComparison":
    """Find the published results that correspond to a run."""
    from ..config import config_names, settings_of
    from ..report.paper_comparison import compare_with_paper
    from ..report.published import METHODS

    known = set(config_names())
    configs = {
        method.config: settings_of(method.config) for method in METHODS if method.config in known
    }
    return compare_with_paper(run, configs)
