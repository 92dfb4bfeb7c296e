"""The per-image results on disk: a Parquet data set, ``scores/part-*.parquet`` in the folder of a run.

``pandas.read_parquet(run / "scores")`` reads it; :func:`read` does so in the order of the data sets. Its columns are described in
docs/results.md. A part is written under another name, forced to the disk and then renamed, so it is whole or not there.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from ..errors import InputError
from ..metrics.table import ScoreTable
from .files import replacing

FOLDER = "scores"
HEADER = b"diffguard_pl"
BEFORE = {
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
AFTER = {"seconds": pa.float64(), "error": pa.string()}


@dataclass(frozen=True)
class Header:
    """What the scores of a run are of; every part holds it.

    Attributes:
        scores: names of the scores, the headline one first.
        datasets: names of the data sets, the in-distribution one first.
        groups: group of each out-of-distribution set.
        arrays: what is kept besides, in half precision, of ``input_logits``, ``input_features`` and ``reconstruction``.
        combination: settings of the scores that are made of these, see :mod:`.combine`; none: there are none.
    """

    scores: list[str]
    datasets: list[str]
    groups: dict[str, str]
    arrays: list[str]
    combination: dict[str, Any] | None = None

    @property
    def schema(self) -> pa.Schema:
        fields = (
            BEFORE
            | dict.fromkeys(self.scores, pa.float64())
            | AFTER
            | dict.fromkeys(self.arrays, pa.list_(pa.float16()))
        )
        return pa.schema(fields.items(), metadata={HEADER: json.dumps(asdict(self))})


class PartWriter:
    """Collects results and writes them part by part.

    Args:
        folder: of the run.
        header: what the scores are of.
        name: of this writer, in the names of its parts: no other may have it.
    """

    def __init__(self, folder: Path, header: Header, name: str):
        self.folder, self.header, self.name = folder / FOLDER, header, name
        self.rows: list[dict[str, Any]] = []
        self.count = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows, dicts by column; a column that a row lacks is null."""
        self.rows += rows

    def flush(self) -> None:
        """Write what there is as one part.

        Raises:
            InputError: it could not be written; the rows are dropped, all parts before stay good.
        """
        if not self.rows:
            return
        rows, self.rows = self.rows, []
        path = self.folder / f"part-{self.name}-{self.count:06}.parquet"
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            parquet.write_table(pa.Table.from_pylist(rows, self.header.schema), file)
            file.flush()
            os.fsync(file.fileno())
        self.count += 1


def parts(run: Path) -> list[Path]:
    """The parts of a run, by name."""
    return sorted((run / FOLDER).glob("part-*.parquet"))


def header(part: Path) -> Header:
    """What the scores of a part are of.

    Raises:
        InputError: it cannot be read, or is no part of a run.
    """
    with _readable(part):
        metadata = parquet.read_schema(part).metadata or {}
    if HEADER not in metadata:
        raise InputError(f"{part}: holds no scores of diffguard_pl")
    return Header(**json.loads(metadata[HEADER]))


def read(
    run: str | Path, columns: Sequence[str] | None = None, only: Sequence[Path] | None = None
) -> tuple[pd.DataFrame, Header]:
    """All results of a run, set by set and in the order of the images, and what they are of.

    Args:
        run: its folder.
        columns: to read; none: all but logits, features and reconstructions.
        only: the parts to read; none: all.

    Raises:
        InputError: there are none, or a part cannot be read.
    """
    files = parts(Path(run)) if only is None else list(only)
    if not files:
        raise InputError(f"{run}: no run of diffguard_pl: there are no {FOLDER}/part-*.parquet")
    described = header(files[0])
    names = (
        list(columns)
        if columns
        else [n for n in described.schema.names if n not in described.arrays]
    )
    tables = []
    for file in files:
        with _readable(file):
            tables.append(parquet.ParquetFile(file).read(columns=names))
    frame = pa.concat_tables(tables).to_pandas()
    frame = frame.reindex(columns=names)  # runs before 0.1 lack some
    if {"dataset", "index"} <= set(names):
        frame = frame.drop_duplicates(
            ["dataset", "index"]
        )  # a rank that outlived its killed run for some seconds makes some
        order = frame["dataset"].map({name: d for d, name in enumerate(described.datasets)})
        frame = (
            frame.assign(_order=order)
            .sort_values(["_order", "index"], kind="stable")
            .drop(columns="_order")
        )
    return frame.reset_index(drop=True), described


def table(frame: pd.DataFrame, described: Header) -> ScoreTable:
    """The scores of the images that have any, for the metrics."""
    scored = frame[frame["error"].isna()]
    numbers = {name: d for d, name in enumerate(described.datasets)}
    return ScoreTable(
        described.scores,
        described.datasets,
        described.groups,
        scored[described.scores].to_numpy(dtype=np.float64),
        scored["dataset"].map(numbers).to_numpy(dtype=np.int64),
    )


@contextmanager
def _readable(part: Path) -> Iterator[None]:
    """Names the part that cannot be read, and what to do."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{part}: cannot be read ({reason}); remove it and resume: its images are computed again"
        ) from error
