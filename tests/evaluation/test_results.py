"""Results of a test: accuracy, and warnings about it."""

import pandas as pd
import pytest

from diffguard_pl.evaluation.results import ResultCollector
from diffguard_pl.metrics.torchmetric import OODMetrics


def collector(right: int, labelled: int, classes: int) -> ResultCollector:
    """Return a collector of in-distribution images, some of which are classified correctly."""
    results = ResultCollector(OODMetrics(["l2"], ["ind", "ood"], {}), classes)
    predictions = [0] * right + [1] * (labelled - right)
    columns = {"dataset": "ind", "index": range(labelled), "error": None, "l2": 0.0}
    frame = pd.DataFrame(columns | {"label": 0, "prediction": predictions})
    results.add_earlier(pd.concat([frame, frame.assign(dataset="ood", label=-1)]))
    return results


@pytest.mark.parametrize(
    ("right", "labelled", "classes"), [(12, 100, 8), (0, 50, 1000), (50, 100, 2), (0, 20, 8)]
)
def test_an_accuracy_at_chance_or_below_is_warned_of(right, labelled, classes):
    results = collector(right, labelled, classes)
    with pytest.warns(UserWarning, match=rf"ind: .*{right} of {labelled} .*check .*classes"):
        results.compute("cpu")
    assert results.accuracy == pytest.approx(right / labelled)


@pytest.mark.parametrize(("right", "labelled", "classes"), [(40, 100, 8), (0, 5, 8), (5, 50, 1000)])
def test_other_accuracies_are_not_warned_of(right, labelled, classes, recwarn):
    results = collector(right, labelled, classes)
    results.compute("cpu")
    assert not [warning for warning in recwarn if "labels" in str(warning.message)]


def test_the_full_spectrum_accuracy_pools_all_labelled_in_distribution_images():
    groups = {"r": "csid", "ood": "near"}
    results = ResultCollector(OODMetrics(["l2"], ["ind", "r", "ood"], groups), 3)
    rows = [("ind", 0, 0), ("ind", 1, 1), ("ind", 2, 2), ("r", 0, 0), ("r", 1, 0), ("ood", -1, 0)]
    frame = pd.DataFrame(rows, columns=["dataset", "label", "prediction"])
    results.add_earlier(frame.assign(index=frame.index, error=None, l2=0.0))
    rows = results.compute("cpu")
    assert (results.accuracy, results.full_spectrum_accuracy) == (1, pytest.approx(4 / 5))
    assert [row.group for row in rows] == ["near", "fsood_near"]
