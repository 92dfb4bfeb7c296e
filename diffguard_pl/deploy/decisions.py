"""TODO."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Decision(NamedTuple):
    """On one image.

    Attributes:
        accepted: whether it is taken for in-distribution.
        label: the class that the classifier gives it.
        label_name: what that is called; the number where nobody knows.
        score: that decided, higher = more in-distribution.
        p_value: how likely an in-distribution image is to score no higher, in (0, 1]; it is rejected where that is at most 1 - tpr.
        diffused: whether the diffusion model was asked; a cascade need not.
    """

    accepted: bool
    label: int
    label_name: str
    score: float
    p_value: float
    diffused: bool


@dataclass(frozen=True)
class Decisions:
    """On images, all on the CPU. Iterating gives a :class:`Decision` for each.

    Attributes:
        accepted: bool [N].
        labels: [N] the classes that the classifier gives; -1 where only scores were given.
        label_names: of these.
        scores: [N] that decided, higher = more in-distribution.
        p_values: [N], see :class:`Decision`.
        diffused: bool [N].
        threshold: scores below it are rejected.
        score_name: of ``scores``.
        all_scores: every score [N] by name.
        images: [N, 3, H, W] in [0, 1] as the detector saw them; None where only scores were given.
        reconstructions: [N, 3, H, W] in [0, 1] under the label; NaN where the diffusion model was not asked; None as above.
        unguided: the unguided reconstructions, where the detector compares to these.
    """

    accepted: Tensor
    labels: Tensor
    label_names: list[str]
    scores: Tensor
    p_values: Tensor
    diffused: Tensor
    threshold: float
    score_name: str
    all_scores: dict[str, Tensor] = field(repr=False)
    images: Tensor | None = field(default=None, repr=False)
    reconstructions: Tensor | None = field(default=None, repr=False)
    unguided: Tensor | None = field(default=None, repr=False)

    @property
    def outlier_scores(self) -> Tensor:
        """[N], higher = more out-of-distribution: the scores, negated; what pytorch-ood's detectors give."""
        return -self.scores

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Decision]:
        columns = (
            self.accepted,
            self.labels,
            self.label_names,
            self.scores,
            self.p_values,
            self.diffused,
        )
        values = (column.tolist() if isinstance(column, Tensor) else column for column in columns)
        return (Decision(*row) for row in zip(*values, strict=True))


def _joined(parts: Sequence[Decisions]) -> Decisions:
    """Of one detector, on images after each other."""

    def joined(name: str) -> Any:
        of = [getattr(part, name) for part in parts]
        if isinstance(of[0], Tensor):
            return torch.cat(of)
        return [one for part in of for one in part] if isinstance(of[0], list) else of[0]

    scores = {
        name: torch.cat([part.all_scores[name] for part in parts]) for name in parts[0].all_scores
    }
    return replace(
        parts[0],
        **{entry.name: joined(entry.name) for entry in fields(Decisions)} | {"all_scores": scores},
    )
