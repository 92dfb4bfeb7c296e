"""Is a score ahead of MSP by more than chance? `python recipes/intervals.py RUN_DIR maps`.

For each out-of-distribution set of a run: AUROC of the score less AUROC of the classifier's MSP, in percent, with the 95 %
interval of a paired bootstrap over images (1,000 samples).
"""

import sys

from diffguard_pl.bootstrap import intervals, replicates
from diffguard_pl.metrics import result_rows
from diffguard_pl.scores import read, table


def main(run: str, score: str) -> None:
    scores = table(*read(run))
    drawn = replicates(scores)  # of all scores on the same draws
    figures = {(row.group, row.dataset, row.score): row.figures for row in result_rows(scores)}
    for group, dataset, name in figures:
        if name == score:
            lead = figures[group, dataset, score].auroc - figures[group, dataset, "msp"].auroc
            low, high = intervals(drawn[group, dataset, score] - drawn[group, dataset, "msp"])["auroc"]
            of = f"{group} ({dataset})"
            print(f"{of}: {score} less msp {100 * lead:+.2f}, 95 % interval {100 * low:.2f} to {100 * high:.2f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
