"""Per-image results on disk: a Parquet dataset, ``RUN/scores/part-*.parquet``.

``pandas.read_parquet(run / "scores")`` reads it; :func:`read_scores` does so in the order of the
datasets. docs/reference/results.md describes the columns. A part is written atomically and flushed
to the disk, so it is complete or absent. It carries a hash of itself, so damage by the disk is
noticed.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
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
HASH_MARK = b"diffguard_pl sha256 "
"""Precedes the hash of a part, 32 bytes, which stand between its data and its footer.

Readers of Parquet find everything by offsets, and pass over these bytes.
"""
PART_NAME = re.compile(r"part-(\d+)-(\d+)-(\d+)\.parquet")
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
        content = encode_part(pa.Table.from_pylist(results, self.header.schema))
        path = self.folder / f"part-{self.name}-{self.count:06}.parquet"
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.count += 1


def encode_part(table: pa.Table) -> bytes:
    """Return a table as the content of a part: Parquet with page checksums and a hash of itself."""
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, write_page_checksum=True)
    content = sink.getvalue().to_pybytes()
    footer = _footer_start(content)
    return content[:footer] + HASH_MARK + sha256(content).digest() + content[footer:]


def part_files(run: Path) -> list[Path]:
    """Return the parts of a run, sorted by name."""
    return sorted((run / SCORES_FOLDER).glob("part-*.parquet"))


def part_numbers(part: Path) -> tuple[str, str, str]:
    """Return session, rank and number of a part, the digits in its name.

    Raises:
        InputError: The file is not named as a part.
    """
    found = PART_NAME.fullmatch(part.name)
    if found is None:
        raise InputError(
            f"{part}: not the name of a part, part-SESSION-RANK-NUMBER.parquet with digits; "
            "rename or remove it"
        )
    session, rank, number = found.groups()
    return session, rank, number


def read_header(part: Path) -> Header:
    """Return the header of a part.

    Raises:
        InputError: The part cannot be read, is damaged, or is not part of a run.
    """
    return _open_part(part)[0]


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
        InputError: The run has no parts, or one cannot be read, is damaged or is of another run.
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
        part_numbers(file)
        of_part, content = _open_part(file)
        if of_part != header:
            raise InputError(
                f"{file}: holds other scores or datasets than {files[0].name}; move the parts of "
                "another run out of this folder"
            )
        with _naming_unreadable(file):
            table = content.read(columns=names)
        _check_datasets(file, table, header)
        tables.append(table)
    frame = pa.concat_tables(tables).select(names).to_pandas()

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


def _open_part(part: Path) -> tuple[Header, parquet.ParquetFile]:
    """Return the header of a part and its table, still encoded, after a check of its hash."""
    with _naming_unreadable(part):
        content = part.read_bytes()
        has_hash = _has_hash(content)
        file = parquet.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        schema = file.schema_arrow
    metadata = schema.metadata or {}
    if METADATA_KEY not in metadata:
        raise InputError(f"{part}: not a part of a diffguard_pl run; remove it")
    if not has_hash:
        raise _unreadable(part, "it lacks the hash that parts are written with")
    header = _parse_header(metadata[METADATA_KEY])
    if header is None or not schema.equals(header.schema):
        raise _unreadable(part, "its columns are not those of this version")
    return header, file


def _has_hash(content: bytes) -> bool:
    """Return whether a part carries a hash of itself.

    Raises:
        OSError: The hash is that of other content.
    """
    footer = _footer_start(content)
    mark = footer - len(HASH_MARK) - sha256().digest_size
    if mark < 0 or content[mark : mark + len(HASH_MARK)] != HASH_MARK:
        return False
    digest = sha256(memoryview(content)[:mark])
    digest.update(memoryview(content)[footer:])
    if digest.digest() != content[mark + len(HASH_MARK) : footer]:
        raise OSError("damaged: its content does not match its hash")
    return True


def _footer_start(content: bytes) -> int:
    """Return where the footer of a Parquet file begins.

    The footer precedes its length, four bytes, and the mark ``PAR1``.
    """
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def _parse_header(text: bytes) -> Header | None:
    """Return the header in the metadata of a part, or None if it is not of this version."""
    try:
        header = Header(**json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return None
    is_named = header.scores and header.datasets and isinstance(header.groups, dict)
    for names in (header.scores, header.datasets, header.arrays):
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            return None
    return header if is_named else None


def _check_datasets(part: Path, table: pa.Table, header: Header) -> None:
    """Raise an `InputError` if a part has results of datasets that its header lacks."""
    if "dataset" in table.column_names:
        unknown = set(table["dataset"].unique().to_pylist()) - set(header.datasets)
        if unknown:
            raise _unreadable(part, f"it has results of {', '.join(map(str, unknown))}")


@contextmanager
def _naming_unreadable(part: Path) -> Iterator[None]:
    """Turn a read error into an `InputError` that names the part and the remedy."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(part, " ".join(str(error).split())[:200]) from error


def _unreadable(part: Path, reason: str) -> InputError:
    return InputError(
        f"{part}: cannot be read ({reason}); remove it, then --resume computes its images again"
    )
