"""Results of a test: gathered from finished batches of all ranks."""

import warnings
from typing import TYPE_CHECKING

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torchmetrics import MetricCollection, SumMetric

from ..metrics.bootstrap import with_intervals
from ..metrics.chance import describe_chance
from ..metrics.table import ResultRow
from ..metrics.torchmetric import OODMetrics
from ..names import CSID
from .transfer import Finished

if TYPE_CHECKING:
    import pandas as pd


class ResultCollector:
    """Scores, accuracy and unreadable images of this rank, until all ranks compute results.

    Args:
        metrics: Metrics of the scores.
        num_classes: Number of the classifier's classes.

    Attributes:
        metrics: Metrics of the scores; after :meth:`compute` with the gathered table.
        accuracy: Accuracy of the classifier on labelled in-distribution images, NaN without any.
        full_spectrum_accuracy: The same with the covariate-shifted datasets, as OpenOOD pools them;
            NaN without such datasets.
        left_out: Number of unreadable images of each dataset; after :meth:`compute` of all ranks.
    """

    def __init__(self, metrics: OODMetrics, num_classes: int):
        self.metrics, self.num_classes = metrics, num_classes
        self.datasets: list[str] = metrics.datasets
        # states stay on the CPU until they are gathered
        self.correct, self.labelled = SumMetric(), SumMetric()
        self.shifted_correct, self.shifted_labelled = SumMetric(), SumMetric()
        self.shifted = {
            d for d, name in enumerate(self.datasets) if metrics.groups.get(name) == CSID
        }
        self.unreadable_counts = MetricCollection(
            {str(d): SumMetric() for d in range(len(self.datasets))}, compute_groups=False
        )
        self.accuracy = self.full_spectrum_accuracy = float("nan")
        self.left_out: dict[str, int] = {}
        # a rank without images needs something to gather, too
        none = torch.zeros(0, dtype=torch.long)
        metrics.update(torch.zeros(0, len(metrics.scores)), none, none)

    def add(self, finished: Finished) -> None:
        """Add the images of a finished batch."""
        batch, detection = finished.batch, finished.detection
        if detection is None:
            return
        d, indices = self.datasets.index(finished.dataset), torch.as_tensor(batch["index"])
        values = torch.stack([detection.scores[name] for name in self.metrics.scores], dim=1)
        self.metrics.update(values, torch.full_like(indices, d), indices)
        if d > 0 and d not in self.shifted:
            return
        labels = batch["label"]
        if (labels >= self.num_classes).any():
            warnings.warn(
                f"{finished.dataset} has labels that the classifier does not know; "
                "check that both number the classes alike",
                stacklevel=1,
            )
        self._add_labelled(d, (detection.prediction.predicted == labels)[labels >= 0])

    def add_unreadable(self, dataset: str, count: int) -> None:
        """Add images without results."""
        self.unreadable_counts[str(self.datasets.index(dataset))].update(count)

    def add_earlier(self, earlier: "pd.DataFrame") -> None:
        """Add the results of an interrupted run, as if they had just been computed.

        Args:
            earlier: Table of the run's scores.
        """
        for d, name in enumerate(self.datasets):
            of_dataset = earlier[earlier["dataset"] == name]
            scored = of_dataset[of_dataset["error"].isna()]
            values = torch.tensor(scored[self.metrics.scores].to_numpy("float64"))
            indices = torch.tensor(scored["index"].to_numpy("int64"))
            self.metrics.update(values, torch.full_like(indices, d), indices)
            self.add_unreadable(name, len(of_dataset) - len(scored))
            labelled = scored[scored["label"] >= 0]
            if (d == 0 or d in self.shifted) and len(labelled):
                correct = labelled["prediction"] == labelled["label"]
                self._add_labelled(d, torch.tensor(correct.to_numpy()))

    def _add_labelled(self, d: int, is_correct: torch.Tensor) -> None:
        if d == 0:
            self.correct.update(is_correct.sum())
            self.labelled.update(len(is_correct))
        else:
            self.shifted_correct.update(is_correct.sum())
            self.shifted_labelled.update(len(is_correct))

    def compute(self, device: torch.device) -> list[ResultRow]:
        """Return the result table with 95 % intervals; empty on all ranks but the first.

        Args:
            device: Device on which ranks gather their states.
        """
        counted = (self.correct, self.labelled, self.shifted_correct, self.shifted_labelled)
        for metric in (self.metrics, *counted, self.unreadable_counts):
            metric.to(device)
        results = self.metrics.compute()
        correct, labelled = self.correct.compute(), self.labelled.compute()
        self.accuracy = (correct / labelled).item()  # NaN without labels
        if self.shifted:
            all_correct = correct + self.shifted_correct.compute()
            all_labelled = labelled + self.shifted_labelled.compute()
            self.full_spectrum_accuracy = (all_correct / all_labelled).item()
        counts_of_labels = int(correct), int(labelled), self.num_classes
        if line := describe_chance(self.datasets[0], *counts_of_labels):
            rank_zero_warn(line, stacklevel=3)
        counts = self.unreadable_counts.compute()
        self.left_out = {self.datasets[int(d)]: int(count) for d, count in counts.items()}
        if results and self.metrics.table is not None:
            results = with_intervals(results, self.metrics.table)
        return results


def logged(results: list[ResultRow]) -> dict[str, float]:
    """Return what loggers get: ``DATASET/SCORE/METRIC``, and the ends of its interval."""
    named: dict[str, float] = {}
    for row in results:
        values = row.metrics._asdict()
        for name, interval in row.intervals.items():
            values |= {f"{name}_{end}": value for end, value in interval._asdict().items()}
        named |= {f"{row.tag}/{row.score}/{name}": value for name, value in values.items()}
    return named
