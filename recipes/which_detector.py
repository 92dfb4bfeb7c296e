"""Compare all scores on both embedded benchmarks: ``python recipes/which_detector.py``.

Runs ``compare/digits`` and ``compare/fashion`` (a run that exists is resumed or read; minutes on a
GPU, an hour on two CPU cores) and prints the table of docs/how-to/which-detector.md: for each score
its network evaluations (of both benchmarks, where they differ), whether it is fitted, and its AUROC
in percent with the 95 % interval of a bootstrap over images, near and far.
"""

import argparse
import math
from pathlib import Path

from studies import run_once

from diffguard_pl.report.costs import ScoreCost
from diffguard_pl.report.results import read_results

BENCHMARKS = {"digits": "compare/digits", "fashion": "compare/fashion"}
"""Config by the name of a benchmark."""
GROUPS = ("near", "far")


def cell(cost: ScoreCost | None, group: str) -> str:
    """Return AUROC and interval on a group of datasets."""
    if cost is None or group not in cost.results:
        return ""
    result = cost.results[group]
    text = f"{100 * result.metrics.auroc:.1f}"
    if result.intervals:
        low, high = result.intervals["auroc"]
        text += f" ({100 * low:.1f}\u2013{100 * high:.1f})"
    return f"**{text}**" if group in cost.best else text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/which_detector"))
    given, settings = parser.parse_known_args()
    costs: dict[str, dict[str, ScoreCost]] = {}
    for benchmark, config in BENCHMARKS.items():
        folder = run_once(config, given.out / benchmark, settings)
        costs[benchmark] = {cost.score: cost for cost in read_results(folder).costs}

    columns = [f"{benchmark}, {group}" for benchmark in BENCHMARKS for group in GROUPS]
    print(f"| score | family | NFE | fitted | {' | '.join(columns)} |")
    print("|---|---|---:|---" + "|---:" * len(columns) + "|")
    known = {name: cost for of in costs.values() for name, cost in of.items()}
    for name in sorted(known, key=lambda name: (known[name].nfe, -near(costs, name))):
        cells = [cell(of.get(name), group) for of in costs.values() for group in GROUPS]
        nfe = " / ".join(dict.fromkeys(f"{of[name].nfe:g}" for of in costs.values() if name in of))
        fitted = "yes" if known[name].fitted else ""
        print(f"| {name} | {known[name].family} | {nfe} | {fitted} | {' | '.join(cells)} |")


def near(costs: dict[str, dict[str, ScoreCost]], name: str) -> float:
    """Return the mean AUROC of a score on near OOD over the benchmarks that have it."""
    found = [of[name].results["near"].metrics.auroc for of in costs.values() if name in of]
    return math.fsum(found) / len(found)


if __name__ == "__main__":
    main()
