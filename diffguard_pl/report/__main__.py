"""The report command: ``python -m diffguard_pl.report RUN_DIR [MORE_RUNS]``.

Rebuilds table, plots, pictures and page of each run from its folder, without models or data; for several runs, compares them.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from ..errors import InputError
from .build import build
from .page import write_comparison_page
from .results import read_results
from .table import compare, comparison_table, result_table, write_comparison


def main(args: list[str] | None = None) -> None:
    """Report as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m diffguard_pl.report", description="Rebuild the report of a run, or compare runs."
    )
    parser.add_argument("run", type=Path, nargs="+", help="folder of a run")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison.html"), help="page of the comparison; its table goes beside it"
    )
    given = parser.parse_args(args)
    console = Console(width=None if sys.stdout.isatty() else 120)  # a log is wide enough for the tables
    try:
        runs = [read_results(folder) for folder in given.run]
        for run in runs:
            sizes, left_out = run.sizes, run.left_out
            console.print(result_table(run.rows, run.header.scores[0], run.header.datasets, sizes, left_out, run.accuracy))
            for path in build(run)[-1:]:
                console.print(f"   report: {path}", soft_wrap=True, highlight=False)
        if len(runs) > 1:
            lines = compare(runs)
            console.print(comparison_table(runs, lines))
            write_comparison(runs, lines, given.out.with_suffix(".csv"))
            write_comparison_page(runs, lines, given.out)
            console.print(f"comparison: {given.out}", soft_wrap=True, highlight=False)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
