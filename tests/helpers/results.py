"""Results of runs, and what they are compared with."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from diffguard_pl.metrics.detection import DetectionMetrics
from diffguard_pl.runs.store import part_files, read_scores


def scores_of(run: Path) -> list[dict]:
    """The results of a run as dicts by column, with None where there is nothing."""
    frame, _ = read_scores(run)
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def assert_same(found: Path, expected: Path) -> None:
    """Every image once, the same scores up to rounding, and the table of scikit-learn on them."""
    (ours, header), (theirs, _) = read_scores(found), read_scores(expected)
    everything = pd.concat(map(pd.read_parquet, part_files(found)))
    assert not everything.duplicated(["dataset", "index"]).any()
    keys = ["dataset", "index", "path", "label", "prediction", "stop_index"]
    pd.testing.assert_frame_equal(ours[keys], theirs[keys])
    difference = (ours[header.scores] - theirs[header.scores]).abs()
    assert difference.median().max() < 1e-5
    assert difference.max().max() < 1e-2
    table = pd.read_csv(found / "metrics.csv").set_index(["dataset", "score"])
    for dataset in header.datasets[1:]:
        of = {
            name: ours.loc[ours["dataset"] == name, header.scores]
            for name in (header.datasets[0], dataset)
        }
        for score in header.scores:
            ind, ood = (values[score].to_numpy() for values in of.values())
            expected = sklearn_metrics(ind, ood)
            assert tuple(table.loc[(dataset, score), list(expected._fields)]) == pytest.approx(
                expected, abs=1e-9
            )


def sklearn_metrics(ind: np.ndarray, ood: np.ndarray) -> DetectionMetrics:
    """As the original and as OpenOOD v1.5 compute them."""
    is_ind, both = np.r_[np.ones(len(ind)), np.zeros(len(ood))], np.r_[ind, ood]
    fpr, tpr, _ = sk.roc_curve(is_ind, both, drop_intermediate=False)
    fpr_out, tpr_out, _ = sk.roc_curve(1 - is_ind, -both, drop_intermediate=False)
    precision_in, recall_in, _ = sk.precision_recall_curve(is_ind, both)
    precision_out, recall_out, _ = sk.precision_recall_curve(1 - is_ind, -both)
    return DetectionMetrics(
        auroc=sk.roc_auc_score(is_ind, both),
        fpr95=fpr[np.argmax(tpr >= 0.95)],
        aupr_in=sk.auc(recall_in, precision_in),
        aupr_out=sk.auc(recall_out, precision_out),
        fpr95_openood=fpr_out[np.argmax(tpr_out >= 0.95)],
    )
