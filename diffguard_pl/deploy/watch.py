"""What a stream of decisions says of the images behind it: rejections over time, and a shift."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..errors import InputError, beginning
from ..runs.csv_files import original_text
from ..scores.conformal import CONFIDENCE
from ..scores.exchangeability import martingale, online_p_values
from .decision_log import companion_of

MOST_WINDOWS = 50


@dataclass(frozen=True)
class Window:
    """Rejections among successive decisions.

    Attributes:
        first: Number of the first decision, from 0.
        decisions: Number of decisions.
        rejected: Number of those that reject.
        share: Fraction that rejects.
        low: Lower end of its exact 95 % interval (Clopper & Pearson 1934).
        high: Upper end.
    """

    first: int
    decisions: int
    rejected: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Watch:
    """What was seen in a stream of decisions.

    Attributes:
        total: All decisions.
        windows: Successive parts of the stream.
        expected: Fraction of in-distribution images that the detector rejects at most; None if
            unknown.
        unreadable: Number of lines of images that could not be read.
        not_judged: Number of decisions without a score.
        uniform_p: p-value of the Kolmogorov-Smirnov test of the p-values against uniform ones.
        exact: Whether p-values were computed with the validation scores of the detector, so that
            the false-alarm rate holds exactly.
        martingale: Base-10 logarithm of the conformal test martingale after each decision [m].
        false_alarm_rate: Probability of an alarm without a shift, however long the stream.
        alarm: Number of the decision at which the martingale exceeded its inverse; None if it
            never did.
        alarm_path: Path of the image of that decision.
    """

    total: Window
    windows: list[Window]
    expected: float | None
    unreadable: int
    not_judged: int
    uniform_p: float
    exact: bool
    martingale: np.ndarray
    false_alarm_rate: float
    alarm: int | None
    alarm_path: str | None

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON; of the martingale its last and its highest value."""
        found = asdict(self) | {
            "martingale_log10": float(self.martingale[-1]),
            "martingale_log10_highest": float(self.martingale.max()),
        }
        del found["martingale"]
        return found


def read_decisions(files: Sequence[str], stdin: TextIO) -> tuple[list[dict[str, Any]], int]:
    """Read the lines of decision logs, in the order of the files.

    Args:
        files: Paths of JSON Lines or CSV files; ``-`` is the standard input, as JSON Lines.
        stdin: The standard input.

    Returns:
        Decisions, and the number of images that could not be read.

    Raises:
        InputError: A file is missing, or a line is no decision.
    """
    decisions, unreadable = [], 0
    for name in files:
        for number, line in enumerate(_lines(name, stdin), start=1):
            if line.get("decision") in ("accept", "reject"):
                decisions.append(line)
            elif line.get("error"):
                unreadable += 1
            else:
                raise InputError(
                    f"{name}: line {number} is no decision; give the output of diffguard-pl score"
                )
    return decisions, unreadable


def tpr_of(file: str) -> float | None:
    """Return the TPR that is kept beside a decision log; None if it is not."""
    try:
        return float(json.loads(companion_of(Path(file)).read_text(encoding="utf-8"))["tpr"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def watch(
    decisions: Sequence[dict[str, Any]],
    unreadable: int = 0,
    reference: np.ndarray | None = None,
    expected: float | None = None,
    false_alarm_rate: float = 0.01,
    window: int | None = None,
    seed: int = 0,
) -> Watch:
    """Look at a stream of decisions.

    Args:
        decisions: Lines of a decision log, in the order of the images.
        unreadable: Number of images that could not be read.
        reference: Validation scores [n] of the detector. None: the p-values of the lines are used,
            which are uniform only up to the validation images' own chance.
        expected: Fraction of in-distribution images that the detector rejects at most.
        false_alarm_rate: Probability of an alarm without a shift.
        window: Number of decisions of a window. Defaults to a fiftieth of them, 20 at least.
        seed: Seed of the p-values of equal scores.

    Raises:
        InputError: There is no decision, or a number is out of range.
    """
    from scipy.stats import kstest

    if not decisions:
        raise InputError("decisions: there are none; give the output of diffguard-pl score")
    if not 0 < false_alarm_rate < 1:
        raise InputError(f"false-alarm rate {false_alarm_rate}: must be above 0 and below 1")
    if window is not None and window < 1:
        raise InputError(f"window {window}: must be at least 1 decision")
    scores = np.array([_number(line, "score") for line in decisions])
    if reference is not None:
        p = online_p_values(reference, scores, seed)
    else:
        # Without a score, an image is as suspicious as can be.
        p = np.nan_to_num([_number(line, "p_value") for line in decisions], nan=0.0)
        if not ((p >= 0) & (p <= 1)).all():
            raise InputError("decisions: a p_value is outside of [0, 1]; check the file")
    capital = martingale(p)
    above = np.flatnonzero(capital >= -np.log10(false_alarm_rate))
    alarm = int(above[0]) if len(above) else None
    rejects = np.array([line["decision"] == "reject" for line in decisions])
    size = window or max(20, -(-len(rejects) // MOST_WINDOWS))
    return Watch(
        total=_window(rejects, 0),
        windows=[
            _window(rejects[start : start + size], start) for start in range(0, len(rejects), size)
        ],
        expected=expected,
        unreadable=unreadable,
        not_judged=int(np.isnan(scores).sum()),
        uniform_p=float(kstest(p, "uniform").pvalue),
        exact=reference is not None,
        martingale=capital,
        false_alarm_rate=false_alarm_rate,
        alarm=alarm,
        alarm_path=None if alarm is None else str(decisions[alarm].get("path")),
    )


def _window(rejects: np.ndarray, first: int) -> Window:
    from scipy.stats import binomtest

    rejected, count = int(rejects.sum()), len(rejects)
    interval = binomtest(rejected, count).proportion_ci(CONFIDENCE, method="exact")
    return Window(
        first, count, rejected, rejected / count, float(interval.low), float(interval.high)
    )


def _number(line: dict[str, Any], name: str) -> float:
    value = line.get(name)
    if value in (None, ""):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"decisions: {name} {beginning(str(value))} is no number") from error


def _lines(name: str, stdin: TextIO) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file as dicts."""
    if name == "-":
        yield from _json_lines(name, stdin)
        return
    try:
        with Path(name).open(encoding="utf-8", newline="") as file:
            if name.lower().endswith(".csv"):
                for line in csv.DictReader(file):
                    yield line | {"path": original_text(line.get("path") or "")}
            else:
                yield from _json_lines(name, file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot be read ({reason})") from error


def _json_lines(name: str, file: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(file, start=1):
        # A line without its end is being written.
        if not text.endswith("\n") or not text.strip():
            continue
        try:
            yield dict(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{name}: line {number} is not JSON; give the output of diffguard-pl score"
            ) from error
