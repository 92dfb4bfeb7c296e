"""What a run has found, read from its folder alone."""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..metrics.bootstrap import with_intervals
from ..metrics.table import ResultRow, ScoreTable, result_rows, sizes
from ..runs.store import Header, read_scores, score_table
from ..scores.combination import Combination
from .cascade_curve import Point, curve


@dataclass
class Results:
    """A run.

    Attributes:
        folder: of the run.
        frame: a line for each image, with the columns of docs/results.md.
        header: names of scores and data sets, and the groups.
        table: the scores of the images that have any.
        rows: the result table, with intervals.
        sizes: by data set, images that have scores.
        left_out: by data set, images that could not be used.
        accuracy: of the classifier on in-distribution images with a label, in [0, 1]; NaN where none has.
        run: the content of ``run.json``; empty where there is none.
        curve: what cascades of other budgets would have done; empty where the run has no cascade.
        budget: of the run's cascade.
    """

    folder: Path
    frame: pd.DataFrame
    header: Header
    table: ScoreTable
    rows: list[ResultRow]
    sizes: dict[str, int]
    left_out: dict[str, int]
    accuracy: float
    run: dict[str, Any]
    curve: list[Point] = field(default_factory=list)
    budget: float | None = None

    @property
    def name(self) -> str:
        """Of the run, for people: config and time."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}"

    @property
    def class_names(self) -> list[str] | None:
        """What the labels are called, where the run knew."""
        names = self.run.get("class_names")
        return (
            names
            if isinstance(names, list) and all(isinstance(name, str) for name in names)
            else None
        )

    @cached_property
    def short_class_names(self) -> list[str]:
        """What stands before the first comma, where no two labels are called that; no two are the same."""
        names = self.class_names or []
        short = [name.partition(",")[0] for name in names]
        few, all_ = Counter(short), Counter(names)
        full = [
            name if all_[name] == 1 else f"{name} ({label})" for label, name in enumerate(names)
        ]
        return [
            brief if few[brief] == 1 else whole for brief, whole in zip(short, full, strict=True)
        ]

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Entries of the record, the last one last."""
        found = self.run.get("sessions")
        return (
            [session for session in found if isinstance(session, dict)]
            if isinstance(found, list)
            else []
        )

    @property
    def unfinished(self) -> str:
        """In words, that the run has not ended and of how many images the figures are; empty where it has, or nobody knows."""
        if not self.sessions or self.sessions[-1].get("ended"):
            return ""
        done, all_ = sum(self.sizes.values()), self._images()
        of = f"{done:,} of {all_:,} images" if all_ else f"the {done:,} images so far"
        return f"not finished: figures are of {of}"

    def _images(self) -> int | None:
        """How many images the run is to compute, where the record has it of every set."""
        images = self.run.get("images")
        if not isinstance(images, dict):
            return None
        counts = [
            count for name in self.header.datasets if isinstance(count := images.get(name), int)
        ]
        return sum(counts) if len(counts) == len(self.header.datasets) else None


def read_results(folder: str | Path, rows: list[ResultRow] | None = None) -> Results:
    """Read a run and compute its table.

    Args:
        folder: of the run.
        rows: the table with its intervals, where it is known already.

    Raises:
        InputError: no run is there, or a part of it cannot be read.
    """
    folder = Path(folder)
    raw, header_of_run = read_scores(folder)
    combination = Combination.of_header(header_of_run)
    frame, header = combination.of_frame(raw, header_of_run)
    scores = score_table(frame, header)
    ind = frame[
        (frame["dataset"] == header.datasets[0]) & frame["error"].isna() & (frame["label"] >= 0)
    ]
    broken = frame[frame["error"].notna()]["dataset"].value_counts()
    return Results(
        folder,
        frame,
        header,
        scores,
        with_intervals(result_rows(scores), scores) if rows is None else rows,
        sizes(scores),
        {name: int(broken.get(name, 0)) for name in header.datasets},
        float((ind["label"] == ind["prediction"]).mean()) if len(ind) else float("nan"),
        read_run(folder),
        curve(raw, header_of_run),
        combination.cascade.budget if combination.cascade else None,
    )


def read_run(folder: Path) -> dict[str, Any]:
    """The content of ``run.json``; empty where there is none that can be read, or it is no record."""
    try:
        found = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
