"""The command ``diffguard-pl report RUN...``: rebuilds the report of a run, or compares runs.

It reads the folders of the runs and needs neither models nor data.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from .errors import one_line_errors


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
        default=Path("comparison.html"),
        metavar="FILE.html",
        help="page of the comparison; its table is written next to it as .csv "
        "(default: %(default)s)",
    )
    given = parser.parse_args(args)

    with one_line_errors():
        report(given.run, given.out)


def report(folders: Sequence[Path], comparison: Path | None = None) -> None:
    """Build and print the report of each run, and compare the runs if there are several.

    Args:
        folders: Folders of the runs.
        comparison: Path of the comparison page; None to compare nothing. Defaults to None.

    Raises:
        InputError: A run cannot be read, a file cannot be written, or the page is not ``.html``.
    """
    from ..errors import InputError
    from ..report.build import build
    from ..report.comparison import compare
    from ..report.page.comparison_page import write_comparison_page
    from ..report.repeats import describe_repeats
    from ..report.results import read_results
    from ..report.tables import (
        cascade_table,
        comparison_table,
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
        page = build(run)[-1]
        table = result_table(
            run.results,
            run.primary_score,
            run.header.datasets,
            run.sizes,
            run.left_out,
            run.accuracy,
            run.unfinished,
        )
        console.print(table)
        if line := describe_repeats(run.frame, run.header.datasets):
            warnings.warn(line, stacklevel=2)
        if run.cascade_curve:
            console.print(cascade_table(run.cascade_curve, run.budget))
        console.print(f"   report: {page}", soft_wrap=True)

    if len(runs) > 1 and comparison is not None:
        compared = compare(runs)
        write_comparison_csv(runs, compared, comparison.with_suffix(".csv"))
        write_comparison_page(runs, compared, comparison)
        console.print(comparison_table(runs, compared))
        console.print(f"comparison: {comparison}", soft_wrap=True)
