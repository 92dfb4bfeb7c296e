"""Data of the plots on the run page: curves, histograms, scatter plots and times as plain lists."""

from typing import Any

import numpy as np

from ...metrics.bootstrap import METRIC_NAMES
from ..curves import histograms, roc
from ..gallery import random_key
from ..results import RunResults

CURVE_POINTS = 120_000
"""Points of all ROC curves of a page together."""
SCATTER_POINTS, SCATTER_POINTS_PER_DATASET = 6000, 1500
"""Points of a scatter plot, of all datasets together and of each."""


def plot_data(run: RunResults) -> dict[str, Any]:
    """Return the data of all plots of the run page, by the name of the plot."""
    table, datasets, scores = run.table, run.header.datasets, run.header.scores
    points = points_per_curve(len(scores) * len(datasets))
    curves: dict[str, Any] = {}
    distributions: dict[str, Any] = {}
    for k, score in enumerate(scores):
        curves[score] = {
            number: curve_data(table.of(0)[:, k], table.of(number)[:, k], points)
            for number in table.ood
        }
        edges, fractions = histograms(table, k)
        distributions[score] = {
            "edges": edges.tolist(),
            "fractions": [of_dataset.round(5).tolist() for of_dataset in fractions],
        }
    return {
        "ood": table.ood,
        "roc": curves,
        "histogram": distributions,
        "scatter": _scatter(run),
        "stops": _stops(run),
        "seconds": _seconds(run),
        "cascade": _cascade(run),
    }


def points_per_curve(curves: int) -> int:
    """Return how many points each of this many curves on one page may have."""
    return min(300, max(20, CURVE_POINTS // curves))


def curve_data(ind: np.ndarray, ood: np.ndarray, points: int) -> dict[str, list[float]]:
    """Return the ROC curve of in-distribution [n] and out-of-distribution scores [m]."""
    x, y = roc(ind, ood, points)
    return {"x": x.round(5).tolist(), "y": y.round(5).tolist()}


def _scatter(run: RunResults) -> list[dict[str, Any]]:
    """Return a random sample of each dataset: indices [n], scores [K][n], and its full size."""
    datasets, scored = run.header.datasets, run.scored
    limit = min(SCATTER_POINTS_PER_DATASET, SCATTER_POINTS // len(datasets))
    samples = []
    for dataset in datasets:
        images = scored[scored["dataset"] == dataset]
        # The first images by their random key, in the order of their indices.
        order = np.argsort([random_key(dataset, index) for index in images["index"]])
        sample = images.iloc[np.sort(order[:limit])]
        values = []
        for score in run.header.scores:
            # Six significant digits are more than a plot shows, and keep the page small.
            values.append([float(f"{value:.6g}") for value in sample[score]])
        samples.append({"index": sample["index"].tolist(), "values": values, "total": len(images)})
    return samples


def _stops(run: RunResults) -> dict[str, Any] | None:
    """Return how often inversion stopped at each step; None if it always did at the same one.

    The result holds the steps [S], and the fraction of images at each, by dataset [D][S].
    """
    # Images that a cascade left out have not been inverted.
    stopped = run.frame[["dataset", "stop_index"]].dropna()
    steps = np.unique(stopped["stop_index"]).astype(int)
    if len(steps) < 2:
        return None
    fractions = []
    for dataset in run.header.datasets:
        of_dataset = stopped.loc[stopped["dataset"] == dataset, "stop_index"].to_numpy()
        count = max(len(of_dataset), 1)
        fractions.append([int((of_dataset == step).sum()) / count for step in steps])
    return {"steps": steps.tolist(), "fractions": fractions}


def _seconds(run: RunResults) -> dict[str, Any] | None:
    """Return the histogram, total and quantiles of the seconds per image; None if unknown."""
    seconds = run.frame["seconds"].dropna().to_numpy(float)
    seconds = seconds[np.isfinite(seconds)]
    if len(seconds) == 0:
        return None
    # A few slow images, such as the first ones, would squeeze all others into one bin.
    high = max(np.quantile(seconds, 0.998), seconds.min() + 1e-9)
    edges = np.linspace(seconds.min(), high, 41)
    counts, _ = np.histogram(seconds.clip(edges[0], edges[-1]), edges)
    median, p95 = np.quantile(seconds, [0.5, 0.95]).tolist()
    return {
        "edges": edges.tolist(),
        "fractions": (counts / len(seconds)).tolist(),
        "total": float(seconds.sum()),
        "median": median,
        "p95": p95,
    }


def _cascade(run: RunResults) -> dict[str, Any] | None:
    """Return the curve of the cascade; None without one.

    Metrics are by name, number of the dataset and budget, each with the ends of its interval.
    """
    points = run.cascade_curve
    if not points:
        return None
    # Results of a point are in a list; find them by dataset.
    by_dataset = [{result.dataset: result for result in point.results} for point in points]
    metrics: dict[str, Any] = {}
    for metric in METRIC_NAMES:
        metrics[metric] = {}
        for number in run.table.ood:
            curve = []
            for results in by_dataset:
                result = results[run.header.datasets[number]]
                values = (getattr(result.metrics, metric), *result.intervals[metric])
                curve.append([round(value, 5) for value in values])
            metrics[metric][number] = curve
    budgets = [point.budget for point in points]
    return {
        "diffused": [round(point.diffused, 5) for point in points],
        "budgets": budgets,
        "budget_index": budgets.index(run.budget) if run.budget in budgets else None,
        "metrics": metrics,
    }
