"""Is a score ahead of another one by more than chance? `python recipes/intervals.py RUN_DIR maps [mahalanobis]`.

For each out-of-distribution set of a run: AUROC of the score less AUROC of the other, which is the classifier's MSP if none is
named, in percent, with the 95 % interval of a paired bootstrap over images (1,000 samples).
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
    drawn = replicates(results.table)  # of all scores on the same draws
    figures = {(row.group, row.dataset, row.score): row.metrics for row in results.results}
    for group, dataset, name in figures:
        if name == score:
            lead = figures[group, dataset, score].auroc - figures[group, dataset, other].auroc
            low, high = intervals(drawn[group, dataset, score] - drawn[group, dataset, other])[
                "auroc"
            ]
            of = f"{group} ({dataset})"
            print(
                f"{of}: {score} less {other} {100 * lead:+.2f}, 95 % interval {100 * low:.2f} to {100 * high:.2f}"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
