"""The file that decisions are written to, JSON Lines, or CSV by its name: by one process at a time, and to go on with.

What it was begun with, a detector and a tpr, is written beside it first, into ``.NAME.detector``: a file with something in it and
without that one is not ours, and stays as it is.
"""

import csv
import fcntl
import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError

COLUMNS = (
    "path",
    "decision",
    "label",
    "class",
    "score",
    "p_value",
    "diffused",
    "picture",
    "note",
    "error",
)


def printable(path: str) -> str:
    """A name on disk may be anything; what is no UTF-8 is escaped, as the data modules do."""
    return path.encode("utf-8", "backslashreplace").decode()


def as_json(line: Mapping[str, Any]) -> str:
    """In one line, for every reader of JSON."""
    return json.dumps(line, allow_nan=False)


class Lines:
    """The file, open and locked until :meth:`close`; nothing in it is changed before :meth:`begin`.

    Args:
        out: its name.
        resume: go on with what is there; else a file with something in it is refused.

    Attributes:
        paths: of the images that it has.
        rejected, broken: how many of them were rejected, and could not be read.

    Raises:
        InputError: it cannot be written, another process is writing it, or it is something else.
    """

    def __init__(self, out: Path, resume: bool):
        self.out, self.beside = out, out.with_name(f".{out.name}.detector")
        self.is_csv = out.suffix.lower() == ".csv"
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            if out.exists() and not out.is_file():
                raise InputError(f"{out}: is no regular file; give another name")
            self.is_new = not out.exists()
            self.file = out.open("a", encoding="utf-8", errors="backslashreplace", newline="")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock()
            rows = self._rows(resume)
            self.paths = {row["path"] for row in rows}
            self.rejected = sum(row.get("decision") == "reject" for row in rows)
            self.broken = sum(bool(row.get("error")) for row in rows)
        except BaseException:
            self.close()
            raise

    def begin(self, detector: str, tpr: float) -> None:
        """Before the first line: take out what an interruption has cut off, and see that all lines are of one detector.

        Args:
            detector: hash of its file.
            tpr: share of in-distribution images that it accepts.
        """
        origin = {"detector": detector, "tpr": tpr}
        try:
            if not self.out.stat().st_size:
                self.beside.write_text(json.dumps(origin) + "\n")
            elif (before := self._origin()) != origin:
                which = (
                    f"tpr {before.get('tpr')}, not {tpr}"
                    if before.get("detector") == detector
                    else "another detector"
                )
                raise InputError(f"{self.out}: was begun with {which}; give another name")
            self.file.truncate(self.whole)
        except OSError as error:
            raise self._unwritable(error) from error
        if self.is_csv and not self.whole:
            self._append(lambda: self._csv().writeheader())

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on its way to the disk when this returns."""
        self._append(
            (lambda: self._csv().writerow(line))
            if self.is_csv
            else (lambda: self.file.write(as_json(line) + "\n"))
        )

    def close(self) -> None:
        """Let others have it."""
        with suppress(OSError):
            if self.is_new and not self.out.stat().st_size:
                self.out.unlink()
        with suppress(OSError):  # has been said when it was written
            self.file.close()

    def _lock(self) -> None:
        """Of the file itself: the system gives it back however the process ends, and nothing is left beside."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self.file.fileno()), self.out.stat()):
                raise BlockingIOError  # who had it has taken it away
        except (BlockingIOError, FileNotFoundError) as error:
            self.is_new = False
            raise InputError(
                f"{self.out}: another process is writing it; wait for it, or give another name"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error

    def _rows(self, resume: bool) -> list[dict[str, Any]]:
        """The lines that are whole."""
        content = self.out.read_bytes()
        if content and not resume:
            raise InputError(
                f"{self.out}: is there already; --resume adds to it what it lacks, or give another name"
            )
        self.whole = end = content.rfind(b"\n") + 1
        while (
            self.is_csv and end and content.count(b'"', 0, end) % 2
        ):  # within quotes, a name may have line ends
            self.whole = end = content.rfind(b"\n", 0, end - 1) + 1
        try:
            text = content[:end].decode("utf-8")
            rows = (
                _read_csv(text)
                if self.is_csv
                else [json.loads(line) for line in text.split("\n")[:-1]]
            )
            if not all(
                isinstance(row["path"], str) and (row.get("decision") or row.get("error"))
                for row in rows
            ):
                raise ValueError("a line without a decision")
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            csv.Error,
        ) as error:
            raise InputError(
                f"{self.out}: holds something else than scores; give another name"
            ) from error
        if content and not self.beside.is_file():
            raise InputError(
                f"{self.out}: what it was begun with is not known, {self.beside.name} is missing; give another name"
            )
        return rows

    def _origin(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.beside.read_text()))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{self.beside}: is damaged; give --out another name") from error

    def _csv(self) -> csv.DictWriter:
        # all text in quotes: a bare carriage return would end a line
        return csv.DictWriter(
            self.file, COLUMNS, restval="", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )

    def _append(self, write: Callable[[], Any]) -> None:
        try:
            write()
            self.file.flush()
        except OSError as error:
            raise self._unwritable(
                error, "; once this is mended, --resume goes on with it"
            ) from error

    def _unwritable(self, error: Exception, then: str = "") -> InputError:
        return InputError(
            f"{self.out}: could not be written ({getattr(error, 'strerror', None) or error}){then}"
        )


def _read_csv(text: str) -> list[dict[str, Any]]:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if rows and (rows[0] != list(COLUMNS) or any(len(row) != len(COLUMNS) for row in rows)):
        raise ValueError("other columns")
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows[1:]]
