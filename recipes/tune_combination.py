"""Choose a benchmark's fusion and cascade: ``python recipes/tune_combination.py RUN_DIR maps vim``.

RUN_DIR is a run on the tuning split; then follow one of its discrepancies and one of its baselines:

    python -m diffguard_pl.test --config digits_ldm --data.split tuning \
        --model.baselines '[msp, vim, mahalanobis, rmds]'

That split has one in-distribution dataset, validation images. One half of them sets the scales
and the other half is scored against the ``tuning`` dataset, then the other way round. Prints the
mean AUROC / FPR@95 of both in percent. No test image is used.

If the run has the path score label_pull, it also prints the best cascades of three stages
(a baseline, the pull, the discrepancy) that need at most 10 network evaluations an image.
"""

import itertools
import sys
from collections.abc import Callable

import numpy as np

from diffguard_pl.metrics.detection import auroc, fpr_at_tpr
from diffguard_pl.names import CALIBRATION, CASCADE, FUSION
from diffguard_pl.runs.record import read_record
from diffguard_pl.runs.store import read_scores
from diffguard_pl.scores.combination import Cascade, Combination, Fusion, Scores

MIDDLE = "label_pull"
MAX_NFE = 10
Score = Callable[[Scores, Scores], np.ndarray]
"""Function of the scores of the images that set the scales, and of the images to score."""


def main(run: str, discrepancy: str, baseline: str, budget: float = 0.2) -> None:
    frame, header = read_scores(run)
    frame = frame[frame["dataset"] != CALIBRATION]
    is_ind = frame["dataset"] == header.datasets[0]
    known = {name: frame.loc[is_ind, name].to_numpy(float) for name in header.scores}
    unknown = {name: frame.loc[~is_ind, name].to_numpy(float) for name in header.scores}

    def show(name: str, score: Score) -> None:
        both_ways = [cross_validated(score, known, unknown, half) for half in (0, 1)]
        print(f"{name}: {' / '.join(f'{100 * mean:.2f}' for mean in np.mean(both_ways, axis=0))}")

    for name in header.scores:
        show(name, lambda _, scores, name=name: scores[name])
    for other in dict.fromkeys((baseline, "msp")):
        show(f"{discrepancy} + {other} by rank", Fusion([discrepancy, other]))
        show(f"{discrepancy} + {other} by zscore", Fusion([discrepancy, other], "zscore"))
    fusion, cascade = Fusion([discrepancy, baseline]), Cascade(baseline, float(budget), FUSION)
    both = Combination(fusion, cascade)
    show(
        f"cascade {baseline} {float(budget):g}, then fusion",
        lambda reference, scores: both(reference, scores)[CASCADE],
    )
    if MIDDLE in header.scores:
        whole = float(frame["nfe"].mean())
        costs = read_record(run)["score_costs"]
        baselines = [name for name in header.scores if costs[name]["family"] == "baseline"]
        show_three_stages(discrepancy, baselines, (costs[MIDDLE]["nfe"], whole), known, unknown)


def show_three_stages(
    discrepancy: str,
    baselines: list[str],
    nfe: tuple[float, float],
    known: Scores,
    unknown: Scores,
) -> None:
    """Print the best cascades of three stages on a grid of budgets.

    Args:
        discrepancy: Score of the last stage.
        baselines: Scores of the first stage to try.
        nfe: Evaluations of an image that is inverted for the pull, and of one that is
            reconstructed.
        known: Scores of the validation images.
        unknown: Scores of the tuning images.
    """
    found = []
    grid = itertools.product(baselines, (0.2, 0.4, 0.6, 0.8, 1.0), (0.1, 0.2, 0.3, 0.5))
    for baseline, budget, middle_budget in grid:
        cascade = Cascade(baseline, budget, discrepancy, middle=MIDDLE, middle_budget=middle_budget)
        results = np.mean([cross_validated(cascade, known, unknown, half) for half in (0, 1)], 0)
        spent = np.mean([_nfe(cascade, nfe, scores, known) for scores in (known, unknown)])
        if spent <= MAX_NFE:
            found.append((*results, spent, baseline, budget, middle_budget))
    print(f"three stages with at most {MAX_NFE} NFE: AUROC / FPR@95, NFE, baseline, budgets")
    for auroc_, fpr, spent, *names in sorted(found, reverse=True)[:8]:
        print(f"{100 * auroc_:.2f} / {100 * fpr:.2f}, {spent:.1f}, {', '.join(map(str, names))}")


def _nfe(cascade: Cascade, nfe: tuple[float, float], scores: Scores, reference: Scores) -> float:
    """Return the network evaluations of an image on average."""
    diffused = cascade.unsure(reference[cascade.baseline], scores[cascade.baseline])
    reconstructed = diffused & cascade.undecided(reference, scores[MIDDLE])
    inverted, whole = nfe
    return float((inverted * diffused + (whole - inverted) * reconstructed).mean())


def cross_validated(score: Score, known: Scores, unknown: Scores, half: int) -> tuple[float, float]:
    """Compute AUROC and FPR@95 with the scales of one half of the known images, on the other."""
    reference = {name: values[half::2] for name, values in known.items()}
    tested = {name: values[1 - half :: 2] for name, values in known.items()}
    ind, ood = score(reference, tested), score(reference, unknown)
    return auroc(ind, ood), fpr_at_tpr(ind, ood)


if __name__ == "__main__":
    main(*sys.argv[1:])
