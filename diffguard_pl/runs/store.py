"""Per-image results on disk: a Parquet dataset, ``RUN/scores/part-*.parquet``.

``pandas.read_parquet(run / "scores")`` reads it; :func:`read_scores` does so in the order of the
datasets. docs/results.md describes the columns. A part is written atomically and flushed to the
disk, so it is complete or absent.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..errors import InputError
from ..metrics.table import ScoreTable
from .files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

SCORES_FOLDER = "scores"
METADATA_KEY = b"diffguard_pl"
"""Key of the :class:`Header` in the metadata of a Parquet file."""
LEADING_COLUMNS = {
    "dataset": pa.string(),
    "group": pa.string(),
    "index": pa.int64(),
    "path": pa.string(),
    "label": pa.int64(),
    "prediction": pa.int64(),
    "reconstructed_as": pa.int64(),
    "stop_index": pa.int64(),
    "nfe": pa.int64(),
}
"""Columns before those of the scores."""
TRAILING_COLUMNS = {"fingerprint": pa.string(), "seconds": pa.float64(), "error": pa.string()}
"""Columns after those of the scores."""


@dataclass(frozen=True)
class Header:
    """Names of what a run scores; every part holds a copy.

    Attributes:
        scores: Names of the scores, primary score first.
        datasets: Names of the datasets, in-distribution dataset first.
        groups: Group of each out-of-distribution dataset.
        arrays: Names of the arrays stored in half precision besides the scores, out of
            ``input_logits``, ``input_features`` and ``reconstruction``.
        combination: Settings of the combined scores, see :mod:`diffguard_pl.scores.combination`;
            None if there are none.
    """

    scores: list[str]
    datasets: list[str]
    groups: dict[str, str]
    arrays: list[str]
    combination: dict[str, Any] | None = None

    @property
    def schema(self) -> pa.Schema:
        """Schema of a part: the columns, with this header as metadata."""
        columns = LEADING_COLUMNS | dict.fromkeys(self.scores, pa.float64())
        columns |= TRAILING_COLUMNS | dict.fromkeys(self.arrays, pa.list_(pa.float16()))
        return pa.schema(columns.items(), metadata={METADATA_KEY: json.dumps(asdict(self))})


class PartWriter:
    """Collects results and writes them part by part.

    Args:
        folder: Folder of the run.
        header: Header of the run.
        name: Name of this writer, unique within the run; it is in the names of its parts.
    """

    def __init__(self, folder: Path, header: Header, name: str):
        self.folder, self.header, self.name = folder / SCORES_FOLDER, header, name
        self.pending: list[dict[str, Any]] = []
        self.count = 0

    def add(self, results: list[dict[str, Any]]) -> None:
        """Collect results, dicts by column; a missing column becomes null."""
        self.pending += results

    def flush(self) -> None:
        """Write the collected results as one part.

        Raises:
            InputError: The part cannot be written; its results are lost, earlier parts stay intact.
        """
        if not self.pending:
            return
        results, self.pending = self.pending, []
        path = self.folder / f"part-{self.name}-{self.count:06}.parquet"
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            parquet.write_table(pa.Table.from_pylist(results, self.header.schema), file)
            file.flush()
            os.fsync(file.fileno())
        self.count += 1


def part_files(run: Path) -> list[Path]:
    """Return the parts of a run, sorted by name."""
    return sorted((run / SCORES_FOLDER).glob("part-*.parquet"))


def read_header(part: Path) -> Header:
    """Return the header of a part.

    Raises:
        InputError: The part cannot be read, or is not part of a run.
    """
    with _naming_unreadable(part):
        metadata = parquet.read_schema(part).metadata or {}
    if METADATA_KEY not in metadata:
        raise InputError(f"{part}: not a part of a diffguard_pl run")
    return Header(**json.loads(metadata[METADATA_KEY]))


def read_scores(
    run: str | Path, columns: Sequence[str] | None = None, only: Sequence[Path] | None = None
) -> tuple["pd.DataFrame", Header]:
    """Return all results of a run, by dataset and in the order of the images, and its header.

    Args:
        run: Folder of the run.
        columns: Names of the columns to read. Defaults to all but logits, features and
            reconstructions.
        only: Parts to read. Defaults to all.

    Raises:
        InputError: The run has no parts, or one cannot be read.
    """
    files = part_files(Path(run)) if only is None else list(only)
    if not files:
        raise InputError(f"{run}: not a diffguard_pl run: {SCORES_FOLDER}/part-*.parquet not found")
    header = read_header(files[0])
    if columns:
        names = list(columns)
    else:
        names = [name for name in header.schema.names if name not in header.arrays]

    tables = []
    for file in files:
        with _naming_unreadable(file):
            tables.append(parquet.ParquetFile(file).read(columns=names))
    # runs before version 0.1 lack some columns
    frame = pa.concat_tables(tables).to_pandas().reindex(columns=names)

    if {"dataset", "index"} <= set(names):
        # a rank that outlives its killed run by a few seconds may write a result twice
        frame = frame.drop_duplicates(["dataset", "index"])
        order = {name: place for place, name in enumerate(header.datasets)}
        frame = frame.assign(_order=frame["dataset"].map(order))
        frame = frame.sort_values(["_order", "index"], kind="stable").drop(columns="_order")
    return frame.reset_index(drop=True), header


def score_table(frame: "pd.DataFrame", header: Header) -> ScoreTable:
    """Return the scores of the images without an error, for the metrics."""
    scored = frame[frame["error"].isna()]
    order = {name: place for place, name in enumerate(header.datasets)}
    return ScoreTable(
        header.scores,
        header.datasets,
        header.groups,
        scored[header.scores].to_numpy(dtype=np.float64),
        scored["dataset"].map(order).to_numpy(dtype=np.int64),
    )


@contextmanager
def _naming_unreadable(part: Path) -> Iterator[None]:
    """Turn a read error into an `InputError` that names the part and the remedy."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{part}: cannot be read ({reason}); remove it, then --resume computes its images again"
        ) from error
