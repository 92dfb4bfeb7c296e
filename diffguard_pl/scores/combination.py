"""Combination of DiffGuard with the baselines: a fusion of both, and a cascade.

The cascade spends diffusion only on images about which the baseline is unsure. Both are calibrated
on in-distribution validation images, the dataset named ``calibration``, and see no
out-of-distribution image. They are functions of an image's scores, so tables and pages are computed
from a run's folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, choose
from ..metrics.table import ScoreTable
from ..names import CALIBRATION, CASCADE, FUSION
from .conformal import By, scale

if TYPE_CHECKING:
    from torch import Tensor

SURE = 0.025
"""Fraction of in-distribution images below the diffused band, for a budget near 0."""
Scores = Mapping[str, np.ndarray]
"""Scores [N] by name."""


@dataclass(frozen=True)
class Fusion:
    """Weighted mean of scores on a common scale.

    Attributes:
        scores: Names of the scores, discrepancies or baselines.
        by: Scale: ``rank``, the fraction of in-distribution images that score lower, or ``zscore``.
        weights: Weight of each score. Defaults to equal weights.
    """

    scores: Sequence[str]
    by: By = "rank"
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if len(self.scores) < 2 or len(set(self.scores)) < len(self.scores):
            raise InputError(
                f"fusion.scores: {list(self.scores)} must be at least two different names"
            )
        if self.by not in ("rank", "zscore"):
            choose("fusion.by", self.by, ["rank", "zscore"])
        if self.weights is None:
            return
        weights = np.asarray(self.weights, dtype=np.float64)
        in_range = np.isfinite(weights).all() and (weights >= 0).all() and weights.any()
        if len(weights) != len(self.scores) or not in_range:
            raise InputError(
                f"fusion.weights: {list(self.weights)} must be {len(self.scores)} numbers, one per "
                "score, none negative and not all 0"
            )

    def __call__(self, reference: Scores, scores: Scores) -> np.ndarray:
        """Compute the fused score [N]; NaN where any of the scores is NaN.

        Args:
            reference: Scores of the validation images.
            scores: Scores of the images.
        """
        # Scores differ in unit and spread: bring them to one scale before averaging.
        scaled = [scale(reference[name], scores[name], self.by) for name in self.scores]
        weights = np.ones(len(self.scores)) if self.weights is None else self.weights
        return np.average(scaled, axis=0, weights=np.asarray(weights, dtype=np.float64))


@dataclass(frozen=True)
class Cascade:
    """The baseline decides where it is sure; only the other images are diffused.

    An image is diffused if its baseline's rank among in-distribution images lies in
    [low, low + budget] with low = SURE (1 - budget). Inside this band the score is the rank of
    ``then``; outside, the rank of the baseline. The budget is therefore the fraction of
    *in-distribution* images that is diffused; the fraction of out-of-distribution images depends on
    the baseline. Budget 0 gives the baseline, budget 1 the other score. Images with equal baseline
    scores, for example from a saturated softmax, are all diffused or none are; many of them make
    the fraction differ from the budget.

    With ``middle`` there is a stage between the two: images are inverted a few steps, and a path
    score decides where it is sure; only the rest is reconstructed. Its band is defined in the same
    way, among the in-distribution images that come to it.

    Attributes:
        baseline: Name of the baseline.
        budget: Fraction of in-distribution images to diffuse, in [0, 1].
        then: Name of the score that decides on diffused images, a discrepancy or ``fusion``.
            Defaults to the first discrepancy.
        skip: Whether to skip the diffusion model outside the band. Their discrepancies are then
            unknown:
            the result table holds the cascade and the baselines, without a curve over the budget.
        middle: Name of a path score that is known after some inversion steps. Defaults to none:
            every diffused image is reconstructed.
        middle_budget: Fraction of diffused in-distribution images to reconstruct, in [0, 1].
    """

    baseline: str = "msp"
    budget: float = 0.2
    then: str | None = None
    skip: bool = False
    middle: str | None = None
    middle_budget: float = 0.5

    def __post_init__(self) -> None:
        for name in ("budget", "middle_budget"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"cascade.{name}: {value} must be a fraction from 0 to 1")

    def unsure(self, reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return which images [N] to diffuse, by baseline scores.

        Args:
            reference: Baseline scores of the validation images [n].
            scores: Baseline scores of the images [N].
        """
        return _in_band(reference, scores, self.budget)

    def undecided(self, reference: Scores, scores: np.ndarray) -> np.ndarray:
        """Return which diffused images [N] to reconstruct, by scores of ``middle``.

        Those without one, because inversion has stopped before, are reconstructed.

        Args:
            reference: Scores of the validation images [n] by name.
            scores: Path scores of the images.
        """
        assert self.middle is not None
        baseline = reference[self.baseline]
        diffused = reference[self.middle][self.unsure(baseline, baseline)]
        if len(diffused) == 0:
            return np.ones(len(scores), dtype=bool)
        return _in_band(diffused, scores, self.middle_budget) | np.isnan(scores)

    def gate(self, reference: np.ndarray) -> Callable[[Any], "Tensor"]:
        """Return :meth:`unsure` of a Prediction, as a :data:`diffguard_pl.stages.Gate`.

        Args:
            reference: Baseline scores of the validation images [n].
        """
        from torch import from_numpy

        def unsure(prediction: Any) -> "Tensor":
            scores = prediction.baselines[self.baseline].cpu().numpy()
            return from_numpy(self.unsure(reference, scores))

        return unsure

    def path_gate(self, reference: Scores) -> Callable[["Tensor"], "Tensor"] | None:
        """Return :meth:`undecided` of path scores [N], as a tensor; None without ``middle``.

        Args:
            reference: Scores of the validation images [n] by name.
        """
        if self.middle is None:
            return None
        from torch import from_numpy

        def undecided(scores: "Tensor") -> "Tensor":
            return from_numpy(self.undecided(reference, scores.cpu().double().numpy()))

        return undecided

    def __call__(
        self,
        reference: Scores,
        scores: Scores,
        diffused: np.ndarray | None = None,
        reconstructed: np.ndarray | None = None,
    ) -> np.ndarray:
        """Compute the cascade's score [N].

        Args:
            reference: Scores of the validation images, of the baseline, ``middle`` and ``then``.
            scores: Scores of the images; those of ``then`` may be NaN where not reconstructed.
            diffused: Which images [N] were diffused. Defaults to :meth:`unsure`.
            reconstructed: Which of these were reconstructed. Defaults to :meth:`undecided`.
        """
        assert self.then is not None
        # Both on the scale of ranks, so that one threshold serves all images.
        sure = scale(reference[self.baseline], scores[self.baseline])
        if diffused is None:
            diffused = self.unsure(reference[self.baseline], scores[self.baseline])
        found = scale(reference[self.then], scores[self.then])
        if self.middle is not None:
            if reconstructed is None:
                reconstructed = self.undecided(reference, scores[self.middle])
            middle = scale(reference[self.middle], scores[self.middle])
            found = np.where(reconstructed, found, middle)
        return np.where(diffused, found, sure)


def _in_band(reference: np.ndarray, scores: np.ndarray, budget: float) -> np.ndarray:
    """Return which scores [N] have a rank in a band, budget wide, of the reference [n]."""
    if budget in (0, 1):
        return np.full(len(scores), budget == 1)
    rank, low = scale(reference, scores), SURE * (1 - budget)
    return (rank >= low) & (rank <= low + budget)


@dataclass(frozen=True)
class Combination:
    """The combined scores of a run; there may be none.

    Attributes:
        fusion: Fusion, if set.
        cascade: Cascade, if set.
        baselines: Names of the baselines.
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
        path_scores: Sequence[str] = (),
    ) -> "Combination":
        """Build a combination, checking that its scores exist.

        Raises:
            InputError: Fusion or cascade name an unknown score.
        """
        if fusion:
            for name in fusion.scores:
                choose("score for model.fusion.scores", name, [*discrepancies, *baselines])
        if cascade:
            choose("baseline for model.cascade.baseline", cascade.baseline, list(baselines))
            then = cascade.then or discrepancies[0]
            known = [*discrepancies, FUSION] if fusion else list(discrepancies)
            if cascade.middle is not None:
                if not path_scores:
                    raise InputError(
                        "model.cascade.middle: needs a path score that is known after a few "
                        "inversion steps; set model.path_scores, for example to [label_pull]"
                    )
                choose("path score for model.cascade.middle", cascade.middle, list(path_scores))
                # The last stage is the reconstruction.
                known = [name for name in known if name not in path_scores]
            choose("score for model.cascade.then", then, known)
            cascade = replace(cascade, then=then)
        return cls(fusion, cascade, list(baselines))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any] | None) -> "Combination":
        """Build a combination from :meth:`to_settings`."""
        if not settings:
            return cls()
        fusion, cascade = settings["fusion"], settings["cascade"]
        return cls(
            Fusion(**fusion) if fusion else None,
            Cascade(**cascade) if cascade else None,
            settings["baselines"],
        )

    def to_settings(self) -> dict[str, Any] | None:
        """Return the settings as a dict for JSON; None if there is nothing to combine."""
        return asdict(self) if self else None

    def __bool__(self) -> bool:
        return self.fusion is not None or self.cascade is not None

    def __str__(self) -> str:
        return " and ".join(self.names)

    @property
    def names(self) -> list[str]:
        """Names of the combined scores."""
        names = [FUSION] if self.fusion else []
        return [*names, CASCADE] if self.cascade else names

    def table_scores(self, scores: Sequence[str]) -> list[str]:
        """Return the names of the scores in a result table, the primary one first.

        In order: discrepancies, combinations, baselines. A cascade that skips images leaves no
        discrepancy that all images have.
        """
        if not self:
            return list(scores)
        baselines = [name for name in scores if name in self.baselines]
        if self.cascade and self.cascade.skip:
            return [CASCADE, *baselines]
        discrepancies = [name for name in scores if name not in self.baselines]
        return [*discrepancies, *self.names, *baselines]

    def __call__(self, reference: Scores, scores: Scores) -> dict[str, np.ndarray]:
        """Compute the combined scores [N] by name.

        Args:
            reference: Scores of the validation images [n].
            scores: Scores of the images [N].

        Raises:
            InputError: There are no validation images.
        """
        if self and not all(len(values) for values in reference.values()):
            raise InputError(f"{self}: none of the images of {CALIBRATION} has scores; check them")
        combined: dict[str, np.ndarray] = {}
        if self.fusion:
            combined[FUSION] = self.fusion(reference, scores)
            # The cascade may rank by the fusion, so the reference needs it too.
            reference = {**reference, FUSION: self.fusion(reference, reference)}
        if self.cascade:
            all_scores = {**scores, **combined}
            decided = (None, None)
            if self.cascade.skip:
                decided = self._decided(scores, all_scores[str(self.cascade.then)])
            combined[CASCADE] = self.cascade(reference, all_scores, *decided)
        return combined

    def _decided(self, scores: Scores, then: np.ndarray) -> tuple[Any, Any]:
        """Return which images [N] were diffused, and which were reconstructed: those with scores.

        This is what was decided during the run. Deciding again by the baseline could differ, as its
        scores may have been rounded differently.
        """
        of_model = [values for name, values in scores.items() if name not in self.baselines]
        diffused = np.asarray(~np.isnan(of_model).all(axis=0))
        return diffused, ~np.isnan(then)

    def apply_to_table(self, table: ScoreTable) -> ScoreTable:
        """Return the table with the combined scores and without the calibration dataset; unchanged
        if it has none."""
        if CALIBRATION not in table.datasets[1:]:
            return table
        is_calibration = table.members == table.datasets.index(CALIBRATION)
        scores = {name: table.values[:, k] for k, name in enumerate(table.scores)}
        if self:
            reference = {name: values[is_calibration] for name, values in scores.items()}
            scores |= self(reference, scores)

        # Renumber the datasets without the calibration.
        kept = [d for d, name in enumerate(table.datasets) if name != CALIBRATION]
        number = np.full(len(table.datasets), -1)
        number[kept] = np.arange(len(kept))

        names = self.table_scores(table.scores)
        values = np.stack([scores[name] for name in names], axis=1)
        return ScoreTable(
            scores=names,
            datasets=[table.datasets[d] for d in kept],
            groups={name: group for name, group in table.groups.items() if name != CALIBRATION},
            values=values[~is_calibration],
            members=number[table.members[~is_calibration]],
        )
