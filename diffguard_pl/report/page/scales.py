"""Scales of the small interval bars in the tables of a page."""

import math
from collections.abc import Iterable

from ...metrics.bootstrap import METRIC_NAMES
from ...metrics.table import ResultRow


def metric_scales(results: Iterable[ResultRow]) -> dict[str, tuple[float, float]]:
    """Return the ends of a scale that holds all values and intervals of each metric.

    The ends are multiples of 2 %, and differ.
    """
    results = list(results)
    scales = {}
    for metric in METRIC_NAMES:
        values = []
        for result in results:
            values += [getattr(result.metrics, metric), *result.intervals.get(metric, ())]
        values = [value for value in values if not math.isnan(value)]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        low, high = math.floor(low * 50) / 50, math.ceil(high * 50) / 50
        scales[metric] = (low, high if high > low else low + 0.02)
    return scales
