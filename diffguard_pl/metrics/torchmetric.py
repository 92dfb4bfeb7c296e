"""Detection metrics of a run as a torchmetrics `Metric`."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..errors import InputError
from .table import ResultRow, ScoreTable, never_finite, result_rows, sizes


class OODMetrics(Metric):
    """Every score on every out-of-distribution dataset, against one in-distribution dataset.

    Keeps all scores, in double precision: the metrics are exact for any real scores.

    Args:
        scores: Names of the K scores.
        datasets: Names of the datasets, the in-distribution one first.
        groups: Group of each other dataset, such as near and far; one without a group has its own
            name. ``csid``: a covariate-shifted in-distribution dataset, see
            :class:`.table.ScoreTable`.
        first_rank: Whether to compute on the first rank alone; the others return no rows.
        derive: Function from the table of all scores to the one that metrics are computed of.

    Attributes:
        table: Scores of all ranks after :meth:`compute`, in the order of the datasets.
        sizes: Number of images of each dataset after :meth:`compute`.
        never_finite: Datasets on which a score is NaN or infinite for every image, by the name of
            the score, after :meth:`compute`.

    Example:
        >>> metric = OODMetrics(["msp"], ["cifar10", "svhn"])
        >>> metric.update(torch.tensor([[0.9], [0.8], [0.3]]), torch.tensor([0, 0, 1]))
        >>> metric.compute()[0].metrics.auroc
        1.0
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None
    values: list[Tensor]
    members: list[Tensor]
    indices: list[Tensor]

    def __init__(
        self,
        scores: list[str],
        datasets: list[str],
        groups: dict[str, str] | None = None,
        first_rank: bool = False,
        derive: Callable[[ScoreTable], ScoreTable] | None = None,
    ):
        super().__init__()
        if len(datasets) < 2 and derive is None:
            raise InputError(
                f"datasets: {datasets} must be an in-distribution one and at least one other"
            )
        self.scores, self.datasets, self.groups = scores, datasets, groups or {}
        self.first_rank, self.derive = first_rank, derive
        self.sizes: dict[str, int] = {}
        self.table: ScoreTable | None = None
        self.never_finite: dict[str, list[str]] = {}
        for state in ("values", "members", "indices"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, values: Tensor, members: Tensor, indices: Tensor | None = None) -> None:
        """Add the scores of a batch.

        Args:
            values: Scores [N, K].
            members: Index of the dataset of each image [N]; 0 is the in-distribution one.
            indices: Index of each image in its dataset [N], so that ``table`` has one order however
                the images were distributed. Defaults to the order of the calls.

        Raises:
            InputError: The shapes do not fit.
        """
        if (
            values.ndim != 2
            or values.shape[1] != len(self.scores)
            or members.shape != values.shape[:1]
        ):
            raise InputError(
                f"scores {list(values.shape)} and datasets {list(members.shape)} must be "
                f"[N, {len(self.scores)}] and [N]"
            )
        exact = torch.float32 if values.device.type == "mps" else torch.float64
        if indices is None:
            indices = torch.zeros_like(members)
        self.values.append(values.detach().to(exact))
        self.members.append(members.detach())
        self.indices.append(indices.detach().to(members))

    def compute(self) -> list[ResultRow]:
        """Compute the rows of the result table, see :func:`.table.result_rows`."""
        distributed = torch.distributed.is_initialized()
        if self.first_rank and distributed and torch.distributed.get_rank() > 0:
            return []
        values = dim_zero_cat(self.values).cpu().numpy()
        members = dim_zero_cat(self.members).cpu().numpy()
        indices = dim_zero_cat(self.indices).cpu().numpy()

        # One order, however the images were distributed over ranks: by dataset, then by index.
        order = np.lexsort((indices, members))
        values, members = values[order].astype(np.float64), members[order]
        table = ScoreTable(self.scores, self.datasets, self.groups, values, members)
        self.never_finite = never_finite(table)
        self.table = table if self.derive is None else self.derive(table)
        self.sizes = sizes(self.table)
        return result_rows(self.table)
