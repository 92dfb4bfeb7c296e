"""The paper's ablations in small, on Fashion-MNIST: ``python recipes/fashion_ablations.py``.

Runs ``fashion_gdm`` and ``fashion_ldm`` with one setting changed at a time (a run that exists is
resumed or read): parts of the clean gradient (Table 3), adaptive early stop (Table 4), activation
mask and steps (Fig. 7), and the scale. Other arguments go to the runs, such as ``--data.limit
100``. Prints a table in Markdown for each config: AUROC of three scores in percent, mean over the
held-out classes (near) and over the other datasets (far), and behind it the difference to the
config as it is, where the 95 % interval of a paired bootstrap over images does not contain zero.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from studies import run_once

from diffguard_pl.metrics.bootstrap import replicates
from diffguard_pl.names import MEAN
from diffguard_pl.report.results import RunResults, read_results

SCORES = ("gmsd", "features", "kl")
GROUPS = ("near", "far")
AS_IT_IS = "as it is"
GUIDANCE = "--model.guidance.init_args"
VARIANTS: dict[str, dict[str, list[str]]] = {
    "fashion_gdm": {
        AS_IT_IS: [],
        "without x0hat": [f"{GUIDANCE}.x0hat", "false"],
        "4 cutouts of 16 px or more": [
            *(f"{GUIDANCE}.cutouts", "4"),
            *(f"{GUIDANCE}.cutout_size", "16"),
        ],
        "4 cutouts, without x0hat": [
            *(f"{GUIDANCE}.cutouts", "4", f"{GUIDANCE}.cutout_size", "16"),
            *(f"{GUIDANCE}.x0hat", "false"),
        ],
        "early stop at 55 dB": ["--model.early_stop", "{psnr: 55.0}"],
        "early stop at 52 dB": ["--model.early_stop", "{psnr: 52.0}"],
        "without early stop, to half the depth": [
            *("--model.early_stop", "null", "--model.early_stop_steps", "13"),
            *("--model.forback_skip_diff", "1"),
        ],
        "scale 1": [f"{GUIDANCE}.scale", "1"],
        "scale 20": [f"{GUIDANCE}.scale", "20"],
        "compared to the input": ["--model.compare_to", "input"],
    },
    "fashion_ldm": {
        AS_IT_IS: [],
        "activation mask, cut 0.2": [f"{GUIDANCE}.cam_cut", "0.2"],
        "activation mask, cut 0.5": [f"{GUIDANCE}.cam_cut", "0.5"],
        "5 steps": ["--model.steps", "5"],
        "20 steps": ["--model.steps", "20"],
        "scale 1": [f"{GUIDANCE}.scale", "1"],
        "scale 2.5": [f"{GUIDANCE}.scale", "2.5"],
        "scale 10": [f"{GUIDANCE}.scale", "10"],
    },
}
"""Settings of each variant, by config and by the name of a row."""


class Measured(NamedTuple):
    """AUROC of a score on a group of datasets, and the bootstrap's draws of it [R]."""

    auroc: float
    drawn: np.ndarray


def measured(results: RunResults) -> list[Measured]:
    """Return the AUROC of each score on each group, in the order of the columns."""
    rows = {(row.group, row.dataset, row.score): row.metrics for row in results.results}
    drawn = replicates(results.table)
    keys = [(group, MEAN, score) for group in GROUPS for score in SCORES]
    return [Measured(rows[key].auroc, drawn[key][:, 0]) for key in keys]


def cell(found: Measured, base: Measured) -> str:
    """Return an AUROC, and its difference to that of another run if that is not noise."""
    low, high = np.percentile(found.drawn - base.drawn, [2.5, 97.5])
    is_noise = low <= 0 <= high
    difference = "" if is_noise else f" ({100 * (found.auroc - base.auroc):+.1f})"
    return f"{100 * found.auroc:.1f}{difference}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/fashion_ablations"))
    given, settings = parser.parse_known_args()
    for config in given.configs:
        columns = [f"{score}, {group}" for group in GROUPS for score in SCORES]
        print(f"\n| {config} | NFE | {' | '.join(columns)} |")
        print("|---" + "|---:" * (1 + len(columns)) + "|")
        base = None
        for name, changed in VARIANTS[config].items():
            shared = ["--model.discrepancies", f"[{', '.join(SCORES)}]", "--pictures.count", "0"]
            folder = given.out / config / name.replace(" ", "_").replace(",", "")
            results = read_results(run_once(config, folder, [*settings, *shared, *changed]))
            found = measured(results)
            base = base or found
            nfe = results.frame["nfe"].mean()
            cells = [cell(*pair) for pair in zip(found, base, strict=True)]
            print(f"| {name} | {nfe:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
