"""ROC curves and histograms of scores, as numbers to draw."""

import numpy as np

from ..metrics.table import ScoreTable


def roc(ind: np.ndarray, ood: np.ndarray, points: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Compute the ROC curve of in-distribution [n] and out-of-distribution scores [m].

    Args:
        ind: In-distribution scores; NaN are ignored.
        ood: Out-of-distribution scores; NaN are ignored.
        points: Maximum number of points; longer curves are thinned evenly. Defaults to 300.

    Returns:
        Fractions of out-of-distribution and of in-distribution scores accepted, from (0, 0) to
        (1, 1).
    """
    ind, ood = np.sort(ind[~np.isnan(ind)]), np.sort(ood[~np.isnan(ood)])
    # From the highest threshold, which accepts the fewest images, down. Each distinct score is one.
    thresholds = np.unique(np.concatenate([ind, ood]))[::-1]
    if len(thresholds) >= points:
        # The first point, (0, 0), has no threshold.
        kept = np.linspace(0, len(thresholds) - 1, points - 1).round().astype(int)
        thresholds = thresholds[kept]
    return _accepted(ood, thresholds), _accepted(ind, thresholds)


def _accepted(ordered: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the fraction of ascending scores at or above each threshold, after a leading 0."""
    count = len(ordered)
    accepted = (count - np.searchsorted(ordered, thresholds, "left")) / max(count, 1)
    return np.insert(accepted, 0, 0.0)


def histograms(
    table: ScoreTable, score: int, bins: int = 50
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Compute the histograms of one score over all datasets, with shared bins.

    Args:
        table: Scores of all images.
        score: Position of the score in the table.
        bins: Number of bins. Defaults to 50.

    Returns:
        Edges [bins + 1], and for each dataset the fraction of its images in each bin [bins].
    """
    # Scores that are NaN or infinite have no place on the axis.
    by_dataset = []
    for dataset in range(len(table.datasets)):
        values = table.of(dataset)[:, score]
        by_dataset.append(values[np.isfinite(values)])
    all_values = np.concatenate(by_dataset)

    # A few outliers would squeeze all other scores into one bin; they go to the outermost bins.
    low, high = np.quantile(all_values, [0.002, 0.998]) if len(all_values) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)

    # Fractions, not counts: datasets differ in size, and one without images has zeros.
    fractions = []
    for values in by_dataset:
        counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
        fractions.append(counts / max(len(values), 1))
    return edges, fractions
