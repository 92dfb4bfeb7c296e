"""TODO."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ..errors import InputError
from .table import ResultRow, ScoreTable, result_rows, sizes


class OODMetrics(Metric):
    """Every score on every out-of-distribution set, against one in-distribution set; exact for any real scores.

    Args:
        scores: names of the scores, K of them.
        datasets: names of the data sets, the in-distribution one first.
        groups: group of each out-of-distribution set, such as near and far; a set without one has its name.
        first_rank: make the table on the first rank alone; the others get an empty one, and their time.
        derive: makes of the table of all scores and sets the one that figures are of.

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
                f"data sets {datasets}: expected an in-distribution one and at least one other"
            )
        self.scores, self.datasets, self.groups = scores, datasets, groups or {}
        self.first_rank, self.derive = first_rank, derive
        self.sizes: dict[str, int] = {}
        self.table: ScoreTable | None = None
        self.add_state("values", [], dist_reduce_fx="cat")
        self.add_state("members", [], dist_reduce_fx="cat")
        self.add_state("indices", [], dist_reduce_fx="cat")

    def update(self, values: Tensor, members: Tensor, indices: Tensor | None = None) -> None:
        """Count images.

        Args:
            values: scores [N, K].
            members: [N] the data set of each image: 0 for the in-distribution one.
            indices: [N] of each image in its set, so that ``table`` has one order however the images were shared out; none: as
                they come.
        """
        if (
            values.ndim != 2
            or values.shape[1] != len(self.scores)
            or members.shape != values.shape[:1]
        ):
            raise InputError(
                f"scores are {list(values.shape)} of data sets {list(members.shape)}; expected [N, {len(self.scores)}] and [N]"
            )
        exact = torch.float32 if values.device.type == "mps" else torch.float64
        self.values.append(values.detach().to(exact))
        self.members.append(members.detach())
        self.indices.append(
            torch.zeros_like(members) if indices is None else indices.detach().to(members)
        )

    def compute(self) -> list[ResultRow]:
        """A row for each set and score, then for the mean of each group of several sets; NaN where a score is NaN or a
        set is empty.

        Leaves the gathered scores in ``table``, set by set, and in ``sizes`` how many images of each set there were.
        """
        if (
            self.first_rank
            and torch.distributed.is_initialized()
            and torch.distributed.get_rank() > 0
        ):
            return []
        values, members, indices = (
            dim_zero_cat(of).cpu().numpy() for of in (self.values, self.members, self.indices)
        )
        order = np.lexsort((indices, members))
        table = ScoreTable(
            self.scores,
            self.datasets,
            self.groups,
            values[order].astype(np.float64),
            members[order],
        )
        self.table = table if self.derive is None else self.derive(table)
        self.sizes = sizes(self.table)
        return result_rows(self.table)
