"""How fusion and cascade of the embedded benchmark were chosen: `python recipes/tune_combination.py RUN_DIR maps mahalanobis`.

RUN_DIR is a run on the tuning split with baselines, and then come a discrepancy and a baseline of it:

    python -m diffguard_pl.test --config digits_ldm --data.split tuning --model.baselines '[msp, vim, mahalanobis, rmds]'

That split has one in-distribution set, the validation digits. One half of them makes the scales, the other half is scored against
the ``tuning`` set, then the other way round; printed are AUROC / FPR@95 in percent, the mean of both. No test image is involved.
"""

import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from diffguard_pl.metrics.detection import auroc, fpr_at_tpr
from diffguard_pl.names import CASCADE, FUSION
from diffguard_pl.runs.store import read_scores
from diffguard_pl.scores.combination import Cascade, Combination, Fusion, Scores

Score = Callable[[Scores, Scores], np.ndarray]
"""Of the scores of the images that make the scales, and the scores of images."""


def main(run: str, discrepancy: str, baseline: str, budget: float = 0.2) -> None:
    frame, header = read_scores(run)
    is_ind = frame["dataset"] == header.datasets[0]

    def show(name: str, score: Score) -> None:
        found = [
            detection_metrics(score, header.scores, frame[is_ind], frame[~is_ind], half)
            for half in (0, 1)
        ]
        print(f"{name}: {' / '.join(f'{100 * figure:.2f}' for figure in np.mean(found, axis=0))}")

    for name in header.scores:
        show(name, lambda _, scores, name=name: scores[name])
    for other in dict.fromkeys((baseline, "msp")):
        show(f"{discrepancy} + {other} by rank", Fusion([discrepancy, other]))
        show(f"{discrepancy} + {other} by zscore", Fusion([discrepancy, other], "zscore"))
    both = Combination(Fusion([discrepancy, baseline]), Cascade(baseline, float(budget), FUSION))
    show(
        f"cascade {baseline} {float(budget):g}, then fusion",
        lambda reference, scores: both(reference, scores)[CASCADE],
    )


def detection_metrics(
    score: Score, names: list[str], known: pd.DataFrame, unknown: pd.DataFrame, half: int
) -> tuple[float, float]:
    """AUROC and FPR@95, the scales from one half of the known images and the figures from the other."""
    reference, tested, strange = (
        {name: part[name].to_numpy(float) for name in names}
        for part in (known[half::2], known[1 - half :: 2], unknown)
    )
    ind, ood = (torch.tensor(score(reference, of)) for of in (tested, strange))
    return auroc(ind, ood), fpr_at_tpr(ind, ood)


if __name__ == "__main__":
    main(*sys.argv[1:])
