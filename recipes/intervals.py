"""Is a score ahead of MSP by more than chance? `python recipes/intervals.py RUN_DIR maps`.

For each out-of-distribution set of a run: AUROC of the score less AUROC of the classifier's MSP, in percent, with the 95 %
interval of a paired bootstrap over images (1,000 samples).
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch

from diffguard_pl.metrics import auroc


def main(run: Path, score: str) -> None:
    generator = np.random.default_rng(0)
    with (run / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    sets = {
        name: torch.tensor([[float(row[score]), float(row["msp"])] for row in rows if row["dataset"] == name], dtype=torch.float64)
        for name in dict.fromkeys(row["dataset"] for row in rows)
    }
    ind_name = next(iter(sets))
    ind = sets.pop(ind_name)

    def lead(a: torch.Tensor, b: torch.Tensor) -> float:
        return 100 * (auroc(a[:, 0], b[:, 0]) - auroc(a[:, 1], b[:, 1]))

    for name, ood in sets.items():
        samples = [
            lead(ind[generator.integers(len(ind), size=len(ind))], ood[generator.integers(len(ood), size=len(ood))])
            for _ in range(1000)
        ]
        low, high = np.percentile(samples, [2.5, 97.5])
        print(f"{name}: {score} less msp {lead(ind, ood):+.2f}, 95 % interval {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
