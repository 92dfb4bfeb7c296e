"""What each score of a run costs, beside its AUROC: which one to take for which budget."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..metrics.table import ResultRow
from ..names import ALL, MEAN

if TYPE_CHECKING:
    import pandas as pd

PATH = "path score"
"""Family of the scores for which a run shows costs."""


@dataclass(frozen=True)
class ScoreCost:
    """Cost and results of one score.

    Attributes:
        score: Name of the score.
        family: ``baseline``, ``path score`` or ``discrepancy``.
        nfe: Network evaluations of an image, if the score were computed alone.
        seconds: Seconds of an image, estimated: the run's seconds for an evaluation times ``nfe``;
            for a baseline, those of the classifier. NaN if unknown.
        fitted: Whether it is fitted to in-distribution images.
        results: Results by group: means, or those of a group's only dataset.
        best: Groups in which it is on the front: all scores with as many evaluations or fewer have
            a lower AUROC. Of equal ones, the first is.
    """

    score: str
    family: str
    nfe: float
    seconds: float
    fitted: bool
    results: dict[str, ResultRow]
    best: frozenset[str]


def score_costs(
    results: Iterable[ResultRow], record: Mapping[str, Any], scored: "pd.DataFrame"
) -> list[ScoreCost]:
    """Return the costs of a run's scores, the cheapest first.

    Args:
        results: Result table.
        record: Content of ``run.json``.
        scored: Lines of the images that have scores.

    Returns:
        Costs; empty where the run has no path score, or its record no costs.
    """
    known = record.get("score_costs")
    if not isinstance(known, dict):
        return []
    groups = _by_group(results)
    # A cascade that skips images leaves no path score that all images have.
    if not any(known[name]["family"] == PATH for name in known.keys() & groups.keys()):
        return []

    # Evaluations of a discrepancy: those of an image less those that only path scores need.
    whole = float(scored["nfe"].mean()) - float(record.get("nfe_of_path_scores", 0))
    per_evaluation, per_classification = _seconds(record)
    costs = []
    for name, of in known.items():
        if name not in groups:
            continue
        nfe = whole if of["nfe"] is None else float(of["nfe"])
        seconds = per_classification + nfe * per_evaluation
        costs.append((name, of["family"], nfe, seconds, bool(of["fitted"]), groups[name]))
    costs.sort(key=lambda cost: cost[2])
    fronts = {group: _front(costs, group) for group in costs[0][5]} if costs else {}
    found = []
    for cost in costs:
        best = [group for group, front in fronts.items() if cost[0] in front]
        found.append(ScoreCost(*cost, best=frozenset(best)))
    return found


def _by_group(results: Iterable[ResultRow]) -> dict[str, dict[str, ResultRow]]:
    """Return the mean of each group by score and group; that of all datasets is not one."""
    found: dict[str, dict[str, ResultRow]] = {}
    for result in results:
        if result.is_full_spectrum or result.group == ALL:
            continue
        of_score = found.setdefault(result.score, {})
        # The mean comes after the datasets, and only where there are several.
        if result.dataset == MEAN or result.group not in of_score:
            of_score[result.group] = result
    return found


def _front(costs: list[Any], group: str) -> set[str]:
    """Return the names of the scores that are better than all that cost as much or less."""

    def auroc(cost: Any) -> float:
        return float(cost[5][group].metrics.auroc)

    front, highest = set(), -math.inf
    for cost in sorted(costs, key=lambda cost: (cost[2], -auroc(cost))):
        if auroc(cost) > highest:
            front.add(cost[0])
            highest = auroc(cost)
    return front


def _seconds(record: Mapping[str, Any]) -> tuple[float, float]:
    """Return the seconds of a network evaluation and of a classification; NaN if unknown."""
    totals = {"nfe": 0.0, "images": 0.0, "diffuse": 0.0, "classify": 0.0}
    for session in record.get("sessions", []):
        throughput = session.get("throughput", {}) if isinstance(session, dict) else {}
        stages = throughput.get("stages", {})
        for name in totals:
            totals[name] += float(throughput.get(name, stages.get(name, 0.0)) or 0.0)
    per_evaluation = totals["diffuse"] / totals["nfe"] if totals["nfe"] else math.nan
    per_image = totals["classify"] / totals["images"] if totals["images"] else math.nan
    return per_evaluation, per_image
