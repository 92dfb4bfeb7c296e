"""DiffGuard together with the classifier's own scores: a fusion of both, and a cascade that spends diffusion where it may tell.

Both are calibrated on in-distribution validation images, the data set that is called ``calibration``, and see no
out-of-distribution image. They are functions of the scores of an image, so that a table and a page are made from a run's folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import InputError, choose
from ..metrics.table import ScoreTable
from ..names import CALIBRATION, CASCADE, FUSION
from ..runs.store import Header
from .conformal import By, scale

if TYPE_CHECKING:
    from torch import Tensor

SURE = 0.025
"""Share of in-distribution images, at most, that the cascade rejects without a look at their reconstruction."""
Scores = Mapping[str, np.ndarray]
"""By name, [N]."""


@dataclass(frozen=True)
class Fusion:
    """The weighted mean of scores that calibration has brought to one scale.

    Attributes:
        scores: names of the scores: discrepancies, baselines.
        by: ``rank``, the share of in-distribution images that score lower, or ``zscore``.
        weights: of each score; none: equal.
    """

    scores: Sequence[str]
    by: By = "rank"
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if len(self.scores) < 2 or len(set(self.scores)) < len(self.scores):
            raise InputError(
                f"fusion.scores={list(self.scores)}: expected two names or more, each once"
            )
        if self.by not in ("rank", "zscore"):
            choose("fusion.by", self.by, ["rank", "zscore"])
        weights = np.asarray(self.weights or [], dtype=np.float64)
        right = (
            len(weights) == len(self.scores)
            and np.isfinite(weights).all()
            and (weights >= 0).all()
            and weights.any()
        )
        if self.weights is not None and not right:
            raise InputError(
                f"fusion.weights={list(self.weights)}: expected {len(self.scores)}, one a score, none below 0, not all 0"
            )

    def __call__(self, reference: Scores, scores: Scores) -> np.ndarray:
        """The fused score [N]; NaN where one of them is.

        Args:
            reference: scores of the validation images.
            scores: scores of the images.
        """
        weights = (
            np.ones(len(self.scores))
            if self.weights is None
            else np.asarray(self.weights, dtype=np.float64)
        )
        scaled = [scale(reference[name], scores[name], self.by) for name in self.scores]
        return np.average(scaled, axis=0, weights=weights)


@dataclass(frozen=True)
class Cascade:
    """The classifier's score decides what it is sure of; only the rest goes through the diffusion model.

    Sure is what ranks low or high among in-distribution images: below ``SURE (1 - budget)`` an image is rejected, above that plus
    the budget it is accepted, both by the baseline's rank; between them the rank of the other score takes its place. So the
    budget is the share of *in-distribution* images that is diffused, and how many out-of-distribution images are, depends on how
    sure the baseline is of them. With budget 0 it is the baseline, with 1 the other score. Images whose baseline scores are equal,
    as those of a saturated softmax are, are diffused all or none, so where many are the share is another than the budget.

    Attributes:
        baseline: name of the classifier's score.
        budget: share of in-distribution images that go through the diffusion model, from 0 to 1.
        then: name of the score that decides on these: a discrepancy, or ``fusion``; none: the first discrepancy.
        skip: do not diffuse the others. Their discrepancies are then not known: the result table has those of the classifier and
            of the cascade, and there is no curve over the budget.
    """

    baseline: str = "msp"
    budget: float = 0.2
    then: str | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.budget <= 1:
            raise InputError(
                f"cascade.budget={self.budget}: expected a share of the images, from 0 to 1"
            )

    def unsure(self, reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Which images [N] are diffused, by the baseline's scores of them and of the validation images."""
        rank, low = scale(reference, scores), SURE * (1 - self.budget)
        return (
            (rank >= low) & (rank <= low + self.budget)
            if 0 < self.budget < 1
            else np.full(len(rank), self.budget == 1)
        )

    def gate(self, reference: np.ndarray) -> Callable[[Any], "Tensor"]:
        """As :meth:`unsure`, of what a detector knows after its first stage: a :data:`~diffguard_pl.stages.Gate`."""
        from torch import from_numpy

        return lambda prediction: from_numpy(
            self.unsure(reference, prediction.baselines[self.baseline].cpu().numpy())
        )

    def __call__(
        self, reference: Scores, scores: Scores, diffused: np.ndarray | None = None
    ) -> np.ndarray:
        """The cascade's score [N].

        Args:
            reference: scores of the validation images, of the baseline and of ``then``.
            scores: scores of the images; those of ``then`` may be NaN where it is not asked.
            diffused: which images [N] were, where that has been decided; none: as :meth:`unsure` says.
        """
        assert self.then is not None
        sure = scale(reference[self.baseline], scores[self.baseline])
        if diffused is None:
            diffused = self.unsure(reference[self.baseline], scores[self.baseline])
        return np.where(diffused, scale(reference[self.then], scores[self.then]), sure)


@dataclass(frozen=True)
class Combination:
    """The scores that are made of others; there may be none.

    Attributes:
        fusion, cascade: as set.
        baselines: names of the scores of the classifier alone.
    """

    fusion: Fusion | None = None
    cascade: Cascade | None = None
    baselines: Sequence[str] = ()

    @classmethod
    def checked(
        cls,
        fusion: Fusion | None,
        cascade: Cascade | None,
        discrepancies: Sequence[str],
        baselines: Sequence[str],
    ) -> "Combination":
        """Raise an `InputError` where a score is named that there is not."""
        for name in fusion.scores if fusion else ():
            choose("score for model.fusion.scores", name, [*discrepancies, *baselines])
        if cascade:
            choose("baseline for model.cascade.baseline", cascade.baseline, list(baselines))
            cascade = replace(cascade, then=cascade.then or discrepancies[0])
            there = [*discrepancies, *([FUSION] if fusion else [])]
            choose("score for model.cascade.then", cascade.then or "", there)
        return cls(fusion, cascade, list(baselines))

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any] | None) -> "Combination":
        """As :meth:`for_header` has written it."""
        if not settings:
            return cls()
        fusion, cascade = settings["fusion"], settings["cascade"]
        return cls(
            Fusion(**fusion) if fusion else None,
            Cascade(**cascade) if cascade else None,
            settings["baselines"],
        )

    @classmethod
    def of_header(cls, header: Header) -> "Combination":
        """As the scores of a run say."""
        return cls.of_settings(header.combination)

    def for_header(self) -> dict[str, Any] | None:
        """What :meth:`of_settings` reads; None of no combination."""
        return asdict(self) if self else None

    def __bool__(self) -> bool:
        return self.fusion is not None or self.cascade is not None

    def __str__(self) -> str:
        return " and ".join(self.names)

    @property
    def names(self) -> list[str]:
        """Of the scores that it makes."""
        return [name for name, part in ((FUSION, self.fusion), (CASCADE, self.cascade)) if part]

    def table_scores(self, scores: Sequence[str]) -> list[str]:
        """Names of the scores in a result table, the headline one first: of discrepancies, of combinations, of baselines.

        A cascade that skips images leaves no discrepancy that all of them have.
        """
        plain, alone = (
            [n for n in scores if (n in self.baselines) == kind] for kind in (False, True)
        )
        if self.cascade and self.cascade.skip:
            return [CASCADE, *alone]
        return [*plain, *self.names, *alone] if self else list(scores)

    def __call__(self, reference: Scores, scores: Scores) -> dict[str, np.ndarray]:
        """The combined scores [N] by name.

        Args:
            reference: scores [n] of the validation images.
            scores: scores [N] of images.
        """
        made: dict[str, np.ndarray] = {}
        if self.fusion:
            made[FUSION] = self.fusion(reference, scores)
            reference = {**reference, FUSION: self.fusion(reference, reference)}
        if self.cascade:
            diffused = None
            if (
                self.cascade.skip
            ):  # decided when they were, by a pass that may have been rounded otherwise
                of_model = [values for name, values in scores.items() if name not in self.baselines]
                diffused = np.asarray(~np.isnan(of_model).all(axis=0))
            made[CASCADE] = self.cascade(reference, {**scores, **made}, diffused)
        return made

    def of_table(self, table: ScoreTable) -> ScoreTable:
        """With the combined scores, and without the calibration set."""
        if CALIBRATION not in table.datasets[1:]:
            return table
        of = {name: table.values[:, k] for k, name in enumerate(table.scores)}
        calibration = table.members == table.datasets.index(CALIBRATION)
        names = self.table_scores(table.scores)
        if self:
            if not calibration.any():
                raise InputError(f"{self}: none of the images of {CALIBRATION} could be used")
            of = of | self({name: values[calibration] for name, values in of.items()}, of)
        kept = [d for d, name in enumerate(table.datasets) if name != CALIBRATION]
        number = np.full(len(table.datasets), -1)
        number[kept] = np.arange(len(kept))
        return ScoreTable(
            names,
            [table.datasets[d] for d in kept],
            {name: group for name, group in table.groups.items() if name != CALIBRATION},
            np.stack([of[name] for name in names], axis=1)[~calibration],
            number[table.members[~calibration]],
        )

    def of_frame(self, frame: pd.DataFrame, header: Header) -> tuple[pd.DataFrame, Header]:
        """As :meth:`of_table`, of the lines of a run; broken images have no combined score."""
        if CALIBRATION not in header.datasets[1:]:
            return frame, header
        names = self.table_scores(header.scores)
        if self:
            calibration = frame[(frame["dataset"] == CALIBRATION) & frame["error"].isna()]
            if calibration.empty:
                raise InputError(f"{self}: none of the images of {CALIBRATION} could be used")
            columns = (
                {name: part[name].to_numpy(float) for name in header.scores}
                for part in (calibration, frame)
            )
            frame = frame.assign(**self(*columns))
        datasets = [name for name in header.datasets if name != CALIBRATION]
        groups = {name: group for name, group in header.groups.items() if name != CALIBRATION}
        frame = frame[frame["dataset"] != CALIBRATION].reset_index(drop=True)
        return frame, replace(header, scores=names, datasets=datasets, groups=groups)
