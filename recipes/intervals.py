"""Test whether a score beats another: ``python recipes/intervals.py RUN_DIR maps [OTHER]``.

Prints, for each out-of-distribution dataset of a run, the AUROC of the score minus that of the
other one (default: msp) in percent, with the 95 % interval of a paired bootstrap over images.
"""

import sys

from diffguard_pl.errors import InputError, choose
from diffguard_pl.metrics.bootstrap import intervals, replicates
from diffguard_pl.report.results import read_results


def main(run: str, score: str, other: str = "msp") -> None:
    try:
        results = read_results(run)
        for name in (score, other):
            choose("score", name, results.table.scores)
    except InputError as error:
        sys.exit(f"error: {error}")
    drawn = replicates(results.table)  # all scores of the same draws: the differences are paired
    rows = {(row.group, row.dataset, row.score): row.metrics for row in results.results}
    for (group, dataset, name), metrics in rows.items():
        if name != score:
            continue
        lead = metrics.auroc - rows[group, dataset, other].auroc
        differences = drawn[group, dataset, score] - drawn[group, dataset, other]
        low, high = intervals(differences)["auroc"]
        print(
            f"{group} ({dataset}): {score} minus {other} {100 * lead:+.2f}, "
            f"95 % interval {100 * low:.2f} to {100 * high:.2f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
