"""CSV files whose names are no formulas to a spreadsheet.

A spreadsheet evaluates a cell whose text begins with ``=``, ``+``, ``-`` or ``@``, so the name of a
file or class could run a command. As OWASP advises, such text is preceded by an apostrophe.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .files import atomic_write

# full-width forms count where a spreadsheet is set to East Asian languages
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
LINE_OR_CELL = tuple("\t\r\n")
APOSTROPHE = "'"


def write_csv(header: Sequence[str], lines: Iterable[Sequence[Any]], path: Path) -> None:
    """Write a table as CSV, its text made safe by `as_text`.

    Raises:
        InputError: The file could not be written.
    """
    with (
        atomic_write(path) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        for line in (header, *lines):
            writer.writerow([as_text(value) for value in line])


def as_text(value: Any) -> Any:
    """Return a cell's value such that a spreadsheet takes it for text; numbers stay numbers.

    Args:
        value: Text or path, which gets an apostrophe if it could be a formula, or a number.
    """
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not _is_formula(value.lstrip(APOSTROPHE)):
        return value
    return APOSTROPHE + value


def original_text(cell: str) -> str:
    """Return the text of which `as_text` made a cell."""
    is_marked = cell.startswith(APOSTROPHE) and _is_formula(cell.lstrip(APOSTROPHE))
    return cell[1:] if is_marked else cell


def _is_formula(text: str) -> bool:
    # some spreadsheets skip white space before a formula
    return text.startswith(LINE_OR_CELL) or text.lstrip().startswith(FORMULA)
