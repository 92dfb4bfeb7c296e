"""Results of a run, read from its folder alone."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..metrics.bootstrap import with_intervals
from ..metrics.table import ResultRow, ScoreTable, result_rows, sizes
from ..names import CALIBRATION
from ..runs.record import read_record_as_it_is
from ..runs.store import Header, read_scores, score_table
from ..scores.combination import Combination
from .cascade_curve import CascadePoint, cascade_curve
from .costs import ScoreCost, score_costs
from .gallery import kept_pictures

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class RunResults:
    """Scores, metrics and record of one run.

    Attributes:
        folder: Folder of the run.
        frame: One line per image with the columns of docs/reference/results.md and the combined
            scores, without the calibration images.
        header: Names of scores and datasets, and the groups.
        table: Scores of the images that have any.
        results: Result table with intervals.
        sizes: Number of scored images by dataset.
        left_out: Number of images by dataset that could not be used.
        accuracy: Accuracy of the classifier on labelled in-distribution images, in [0, 1]; NaN
            without labels.
        full_spectrum_accuracy: The same with the covariate-shifted datasets; NaN without any.
        record: Content of ``run.json``; empty without one.
        cascade_curve: Results at other budgets of the cascade; empty without a cascade.
        budget: Budget of the run's cascade; None without a cascade.
        costs: Costs of the scores, the cheapest first; empty without path scores.
    """

    folder: Path
    frame: "pd.DataFrame"
    header: Header
    table: ScoreTable
    results: list[ResultRow]
    sizes: dict[str, int]
    left_out: dict[str, int]
    accuracy: float
    record: dict[str, Any]
    full_spectrum_accuracy: float = math.nan
    cascade_curve: list[CascadePoint] = field(default_factory=list)
    budget: float | None = None
    costs: list[ScoreCost] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name to display: config and time, the last two parts of the folder."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}"

    @cached_property
    def pictures(self) -> dict[tuple[str, int], Path]:
        """Path of the kept picture by dataset and index of the image."""
        return kept_pictures(self.folder)

    @property
    def primary_score(self) -> str:
        """Name of the first score."""
        return self.header.scores[0]

    @property
    def ind(self) -> str:
        """Name of the in-distribution dataset."""
        return self.header.datasets[0]

    @property
    def scored(self) -> "pd.DataFrame":
        """Lines of the images that have scores."""
        return self.frame[self.frame["error"].isna()]

    def group_of(self, dataset: str) -> str:
        """Return the group to display for a dataset."""
        return self.header.groups.get(dataset, "in-distribution")

    @property
    def class_names(self) -> list[str] | None:
        """Class names by label; None if the record has no valid ones."""
        names = self.record.get("class_names")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
        return None

    @cached_property
    def short_class_names(self) -> list[str]:
        """Distinct class names by label, shortened to the part before the first comma if possible.

        ImageNet's names are lists of synonyms: "cock, rooster" becomes "cock", but the two cranes
        stay "crane, bird" and "crane, machine".
        """
        names = self.class_names or []
        short_names = [name.partition(",")[0] for name in names]
        short_counts, full_counts = Counter(short_names), Counter(names)
        distinct = []
        for label, (short, full) in enumerate(zip(short_names, names, strict=True)):
            if short_counts[short] == 1:
                distinct.append(short)
            elif full_counts[full] == 1:
                distinct.append(full)
            else:
                distinct.append(f"{full} ({label})")
        return distinct

    def class_name(self, label: Any) -> str | None:
        """Return the short name of a label; the label itself without names, None if unknown."""
        import pandas as pd

        if pd.isna(label) or label < 0:
            return None
        names = self.short_class_names
        return names[int(label)] if int(label) < len(names) else str(int(label))

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Sessions of the record, oldest first; empty without a valid record."""
        sessions = self.record.get("sessions")
        if not isinstance(sessions, list):
            return []
        return [session for session in sessions if isinstance(session, dict)]

    @property
    def unfinished(self) -> str:
        """Note on an unfinished run and the images it covers; empty if finished or unknown."""
        if not self.sessions or self.sessions[-1].get("ended"):
            return ""
        scored, planned = sum(self.sizes.values()), self._planned_images()
        if planned is None:
            return f"unfinished run: results cover the {scored:,} images scored so far"
        return f"unfinished run: results cover {scored:,} of {planned:,} images"

    def _planned_images(self) -> int | None:
        """Return how many images the run will score; None unless known of every dataset."""
        images = self.record.get("images")
        if not isinstance(images, dict):
            return None
        total = 0
        for name in self.header.datasets:
            count = images.get(name)
            if not isinstance(count, int):
                return None
            total += count
        return total


def with_combined_scores(frame: "pd.DataFrame", header: Header) -> tuple["pd.DataFrame", Header]:
    """Add fusion and cascade to a run's scores, and remove the calibration images.

    Images that could not be read have no combined score.

    Raises:
        InputError: None of the calibration images has scores.
    """
    combination = Combination.from_settings(header.combination)
    if CALIBRATION not in header.datasets[1:]:
        return frame, header
    if combination:
        is_reference = ((frame["dataset"] == CALIBRATION) & frame["error"].isna()).to_numpy()
        scores = {name: frame[name].to_numpy(float) for name in header.scores}
        reference = {name: values[is_reference] for name, values in scores.items()}
        frame = frame.assign(**combination(reference, scores))
    frame = frame[frame["dataset"] != CALIBRATION].reset_index(drop=True)
    header = replace(
        header,
        scores=combination.table_scores(header.scores),
        datasets=[name for name in header.datasets if name != CALIBRATION],
        groups={name: group for name, group in header.groups.items() if name != CALIBRATION},
    )
    return frame, header


def read_results(folder: str | Path, results: Sequence[ResultRow] | None = None) -> RunResults:
    """Read a run's folder and compute its result table.

    Args:
        folder: Folder of the run.
        results: Result table with intervals, if it is known already. Defaults to computing it.

    Raises:
        InputError: The folder holds no run, or a part of the scores cannot be read.
    """
    folder = Path(folder)
    raw_frame, raw_header = read_scores(folder)
    combination = Combination.from_settings(raw_header.combination)
    frame, header = with_combined_scores(raw_frame, raw_header)
    scores = score_table(frame, header)
    if results is None:
        results = with_intervals(result_rows(scores), scores)
    # Images with an error have a line, but no scores.
    left_out_counts = frame[frame["error"].notna()]["dataset"].value_counts()
    record = _read_record(folder)
    return RunResults(
        folder=folder,
        frame=frame,
        header=header,
        table=scores,
        results=list(results),
        sizes=sizes(scores),
        left_out={name: int(left_out_counts.get(name, 0)) for name in header.datasets},
        accuracy=_accuracy(frame, [header.datasets[0]]),
        record=record,
        full_spectrum_accuracy=_full_spectrum_accuracy(frame, scores),
        cascade_curve=cascade_curve(raw_frame, raw_header),
        budget=combination.cascade.budget if combination.cascade else None,
        costs=score_costs(results, record, frame[frame["error"].isna()]),
    )


def _full_spectrum_accuracy(frame: "pd.DataFrame", table: ScoreTable) -> float:
    """Return the accuracy with the covariate-shifted datasets; NaN without such datasets."""
    if not table.shifted:
        return math.nan
    return _accuracy(frame, [table.datasets[d] for d in (0, *table.shifted)])


def _accuracy(frame: "pd.DataFrame", datasets: Sequence[str]) -> float:
    """Return the classifier's accuracy on labelled images of datasets; NaN without any."""
    of_datasets = frame["dataset"].isin(datasets)
    is_labelled = of_datasets & frame["error"].isna() & (frame["label"] >= 0)
    labelled = frame[is_labelled]
    if labelled.empty:
        return math.nan
    return float((labelled["label"] == labelled["prediction"]).mean())


def _read_record(folder: Path) -> dict[str, Any]:
    """Return the content of ``run.json``; empty if it is missing or damaged.

    A report needs the scores only, so a damaged record costs some facts, not the report.
    """
    try:
        return read_record_as_it_is(folder)
    except InputError:
        return {}
