"""What a detector decides on images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """Decision on one image.

    Attributes:
        accepted: Whether the image is taken for in-distribution.
        label: Class predicted by the classifier.
        label_name: Name of that class; its number if the names are unknown.
        score: Deciding score, higher = more in-distribution.
        p_value: Conformal p-value in (0, 1]: probability that an in-distribution image scores no
            higher. The image is rejected if it is at most 1 - tpr.
        diffused: Whether the image went through the diffusion model; a cascade may skip it.
        note: Why the image could not be judged; empty if it was.
    """

    accepted: bool
    label: int
    label_name: str
    score: float
    p_value: float
    diffused: bool
    note: str = ""


@dataclass(frozen=True)
class Decisions:
    """Decisions on N images, all on the CPU. Iterating yields a :class:`Decision` per image.

    Attributes:
        accepted: Whether each image is taken for in-distribution, bool [N].
        labels: Classes predicted by the classifier [N]; -1 if only scores were given.
        label_names: Names of these classes.
        scores: Deciding scores [N], higher = more in-distribution.
        p_values: Conformal p-values [N] in (0, 1], see :class:`Decision`.
        diffused: Whether each image went through the diffusion model, bool [N].
        threshold: Images whose score is below it are rejected.
        score_name: Name of the deciding score.
        all_scores: Every score [N] by name.
        images: Images [N, 3, H, W] in [0, 1] as the detector saw them; None if only scores were
            given.
        reconstructions: Reconstructions [N, 3, H, W] in [0, 1] under the label; NaN for images that
            were not diffused, None if only scores were given.
        unguided: Unguided reconstructions [N, 3, H, W] in [0, 1], if the model compares to them.
        without_counterpart: Names of the classes that the diffusion model does not have.
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
    without_counterpart: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def outlier_scores(self) -> Tensor:
        """Negated scores [N], higher = more out-of-distribution, as in pytorch-ood."""
        return -self.scores

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Decision]:
        for i in range(len(self)):
            yield Decision(
                accepted=bool(self.accepted[i]),
                label=int(self.labels[i]),
                label_name=self.label_names[i],
                score=float(self.scores[i]),
                p_value=float(self.p_values[i]),
                diffused=bool(self.diffused[i]),
                note=self._note(i),
            )

    def _note(self, i: int) -> str:
        if not self.scores[i].isnan():
            return ""
        if self.label_names[i] in self.without_counterpart:
            return f"the diffusion model has no class for {self.label_names[i]!r}"
        return "its score is not a number"

    @classmethod
    def concatenate(cls, parts: Sequence["Decisions"]) -> "Decisions":
        """Return the decisions of one detector on several batches as one object."""
        columns = {
            entry.name: _concatenated([getattr(part, entry.name) for part in parts])
            for entry in fields(cls)
        }
        return cls(**columns)


def _concatenated(values: list[Any]) -> Any:
    """Join a field of several decisions; fields of the detector itself are equal in all."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, list):
        return [item for value in values for item in value]
    if isinstance(first, dict):
        return {name: _concatenated([value[name] for value in values]) for name in first}
    return first
