"""The file that decisions are written to: JSON Lines, or CSV if its name ends in ``.csv``.

One process at a time writes to it, and an interrupted one can be resumed. The detector and the TPR
of its decisions are stored beside it, in ``.NAME.detector``, before the first decision. A non-empty
file without that companion is somebody else's, and is never changed.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..runs.csv_files import as_text, original_text
from ..runs.lock import Lock

if TYPE_CHECKING:
    from .decisions import Decision, Decisions

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


def companion_of(path: Path) -> Path:
    """Return the file beside a decision log that says which detector and TPR it is of."""
    return path.with_name(f".{path.name}.detector")


def printable(path: str) -> str:
    """Return a path with bytes that are not UTF-8 escaped, as the data modules do."""
    return path.encode("utf-8", "backslashreplace").decode()


def as_json(line: Mapping[str, Any]) -> str:
    """Return one line of JSON, without the NaN that many readers of JSON reject."""
    return json.dumps(line, allow_nan=False)


def decision_lines(
    batch: Mapping[str, Any], decisions: "Decisions | None"
) -> dict[int, dict[str, Any]]:
    """Return the lines of a batch by the index of their images, in ascending order.

    Args:
        batch: Batch as of :func:`~diffguard_pl.datamodules.reading.collate`.
        decisions: Decisions on its readable images; None if it has none.
    """
    lines = {
        item["index"]: {"path": item["path"], "error": item["error"]}
        for item in batch["unreadable"]
    }
    for index, path, decision in zip(batch["index"], batch["path"], decisions or (), strict=True):
        lines[int(index)] = {"path": path} | _decision_fields(decision)
    return {index: lines[index] for index in sorted(lines)}


def _decision_fields(decision: "Decision") -> dict[str, Any]:
    """Return the fields of a decision. JSON lacks NaN and infinity: they become null and a note."""
    score, p_value = decision.score, decision.p_value
    has_score = math.isfinite(score)
    fields = {
        "decision": "accept" if decision.accepted else "reject",
        "label": decision.label,
        "class": decision.label_name,
        "score": score if has_score else None,
        "p_value": p_value if has_score and math.isfinite(p_value) else None,
        "diffused": decision.diffused,
    }
    if decision.note:
        fields["note"] = decision.note
    elif not has_score:
        fields["note"] = f"its score is {score}"
    return fields


class DecisionLog:
    """The file, open and locked until :meth:`close`. Nothing in it changes before :meth:`begin`.

    Args:
        path: Path of the file.
        resume: Whether to append to an existing file; otherwise a non-empty file is refused.
        go_on: How to go on after a line could not be written.

    Attributes:
        paths: Paths of the images that the file already has.
        rejected: Number of images in the file that were rejected.
        unreadable: Number of images in the file that could not be read.

    Raises:
        InputError: The file cannot be written, is being written by another process, or is not a
            decision log.
    """

    def __init__(self, path: Path, resume: bool, go_on: str = "continue with --resume"):
        self.path, self.go_on = path, go_on
        self.companion = companion_of(path)
        self.lock = Lock(path.with_name(f".{path.name}.lock"))
        self.is_csv = path.suffix.lower() == ".csv"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise InputError(f"{path}: is not a regular file; choose another name")
            if not self.lock.acquire_unless_held():
                raise InputError(
                    f"{path}: in use by {self.lock.owner}; {self.lock.remedy}, or choose another "
                    "name"
                )
            self.is_new = not path.exists()
            self.file = path.open("a", encoding="utf-8", errors="backslashreplace", newline="")
        except OSError as error:
            self.lock.release()
            raise self._unwritable(error) from error
        try:
            lines, self.complete_bytes = self._read(resume)
        except BaseException:
            self.close()
            raise
        self.paths = {line["path"] for line in lines}
        self.rejected = sum(line.get("decision") == "reject" for line in lines)
        self.unreadable = sum(bool(line.get("error")) for line in lines)

    def begin(self, detector: str, tpr: float) -> None:
        """Prepare to write: drop a line that an interruption cut off, and store the detector.

        Args:
            detector: Hash of the detector file.
            tpr: Fraction of in-distribution images that it accepts.

        Raises:
            InputError: The file has decisions of another detector or TPR, or cannot be written.
        """
        origin = {"detector": detector, "tpr": tpr}
        try:
            if self.path.stat().st_size == 0:
                self.companion.write_text(json.dumps(origin) + "\n", encoding="utf-8")
            else:
                self._check_origin(origin)
            self.file.truncate(self.complete_bytes)
        except OSError as error:
            raise self._unwritable(error) from error
        if self.is_csv and not self.complete_bytes:
            self._append(lambda: self._csv_writer().writeheader())

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line and hand it to the operating system."""
        if self.is_csv:
            cells = {name: as_text(value) for name, value in line.items()}
            self._append(lambda: self._csv_writer().writerow(cells))
        else:
            self._append(lambda: self.file.write(as_json(line) + "\n"))

    def close(self) -> None:
        """Close the file, remove it if it is new and empty, and release the lock."""
        with suppress(OSError):  # write() has reported it
            self.file.close()
        with suppress(OSError):
            if self.is_new and self.path.stat().st_size == 0:
                self.path.unlink()
        self.lock.release()

    def _read(self, resume: bool) -> tuple[list[dict[str, Any]], int]:
        """Return the complete lines of the file and their size in bytes."""
        content = self.path.read_bytes()
        if content and not resume:
            raise InputError(
                f"{self.path}: exists already; --resume adds what it lacks, or choose another name"
            )
        end = content.rfind(b"\n") + 1
        # a quoted CSV field may contain line ends: cut only outside quotes
        while self.is_csv and end and content.count(b'"', 0, end) % 2:
            end = content.rfind(b"\n", 0, end - 1) + 1
        parse = _parse_csv if self.is_csv else _parse_json_lines
        try:
            lines = parse(content[:end].decode("utf-8"))
            for line in lines:
                if not isinstance(line["path"], str):
                    raise ValueError("a path is not a string")
                if not (line.get("decision") or line.get("error")):
                    raise ValueError("a line has no decision")
        except (
            AttributeError,
            KeyError,
            RecursionError,
            TypeError,
            ValueError,
            csv.Error,
        ) as error:
            raise InputError(
                f"{self.path}: is not a decision log ({type(error).__name__}); choose another name"
            ) from error
        if content and not self.companion.is_file():
            raise InputError(
                f"{self.path}: its detector is unknown, {self.companion.name} is missing; "
                "choose another name"
            )
        return lines, end

    def _check_origin(self, origin: dict[str, Any]) -> None:
        """Check that the existing lines are of the same detector and TPR."""
        try:
            earlier = dict(json.loads(self.companion.read_text(encoding="utf-8")))
        except (RecursionError, TypeError, ValueError) as error:
            raise InputError(f"{self.companion}: is damaged; choose another --out") from error
        if earlier == origin:
            return
        if earlier.get("detector") == origin["detector"]:
            other = f"tpr={earlier.get('tpr')}, not {origin['tpr']}"
        else:
            other = "another detector"
        raise InputError(f"{self.path}: was started with {other}; choose another name")

    def _csv_writer(self) -> csv.DictWriter:
        # quotes around all text: readers take a bare carriage return for the end of a line
        return csv.DictWriter(
            self.file, COLUMNS, restval="", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
        )

    def _append(self, write: Callable[[], Any]) -> None:
        try:
            write()
            self.file.flush()
        except OSError as error:
            raise self._unwritable(error, f"; fix the cause, then {self.go_on}") from error

    def _unwritable(self, error: Exception, remedy: str = "") -> InputError:
        reason = getattr(error, "strerror", None) or error
        return InputError(f"{self.path}: cannot be written ({reason}){remedy}")


def _parse_json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _parse_csv(text: str) -> list[dict[str, Any]]:
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if not lines:
        return []
    header, *rest = lines
    if header != list(COLUMNS) or any(len(line) != len(COLUMNS) for line in rest):
        raise ValueError("other columns")
    return [dict(zip(COLUMNS, map(original_text, line), strict=True)) for line in rest]
