"""The command ``diffguard-pl watch DECISIONS...``: has the stream of images changed?"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import one_line_errors

if TYPE_CHECKING:
    from ..deploy.watch import Watch

ALARM_STATUS = 3
"""Exit status after an alarm; 1 stands for an error."""


def main(args: list[str] | None = None) -> None:
    """Look at decision logs, and exit with status 3 if they raise an alarm.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="diffguard-pl watch",
        description="Has the stream of images changed? Shares of rejected images over time, and a "
        "conformal test martingale that raises an alarm: exit status 3.",
    )
    parser.add_argument(
        "decisions", nargs="+", help="output of diffguard-pl score, in order; - for JSON from stdin"
    )
    parser.add_argument(
        "--detector",
        help="its file: p-values are computed with its validation scores, so that the false-alarm "
        "rate is exact",
    )
    parser.add_argument(
        "--false-alarm-rate",
        type=float,
        default=0.01,
        help="probability of an alarm without a change, however long the stream (default: 0.01)",
    )
    parser.add_argument("--window", type=int, help="decisions of a point of the picture")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(args)
    with one_line_errors():
        found = _look(given)
        if given.plot:
            _draw(found, given.plot)
        print(json.dumps(found.as_json()) if given.json else _text(found))
    if found.alarm is not None:
        sys.exit(ALARM_STATUS)


def _look(given: argparse.Namespace) -> "Watch":
    from ..deploy.watch import read_decisions, tpr_of, watch

    reference = expected = None
    if given.detector:
        from ..deploy.detector_file import DetectorFile
        from ..deploy.hub import find_detector_file

        content = DetectorFile.read(find_detector_file(given.detector))
        reference, expected = content.calibration, 1 - content.threshold.tpr
    tprs = {tpr_of(file) for file in given.decisions} - {None}
    if len(tprs) == 1:
        expected = 1 - float(tprs.pop() or 0)
    decisions, unreadable = read_decisions(given.decisions, sys.stdin)
    return watch(decisions, unreadable, reference, expected, given.false_alarm_rate, given.window)


def _draw(found: "Watch", path: Path) -> None:
    import math

    from ..report.watch_plot import draw_watch

    draw_watch(
        found.windows,
        found.expected,
        found.martingale,
        -math.log10(found.false_alarm_rate),
        found.alarm,
        path,
    )


def _text(found: "Watch") -> str:
    total = found.total
    share = (
        f"{total.decisions} decisions, {total.rejected} rejected: {100 * total.share:.1f} % "
        f"(95 % interval {100 * total.low:.1f} to {100 * total.high:.1f}"
    )
    if found.expected is not None:
        share += f"; at most {100 * found.expected:.1f} of in-distribution images"
    lines = [share + ")"]
    if found.unreadable or found.not_judged:
        lines.append(
            f"{found.unreadable} images could not be read, {found.not_judged} could not be judged"
        )
    lines.append(f"p-values: Kolmogorov-Smirnov test against uniform, p = {found.uniform_p:.2g}")
    highest, limit = 10 ** min(found.martingale.max(), 300.0), 1 / found.false_alarm_rate
    state = "no alarm"
    if found.alarm is not None:
        state = f"ALARM at decision {found.alarm + 1} ({found.alarm_path})"
    lines.append(f"martingale: highest {highest:.3g}, alarm at {limit:.3g}: {state}")
    if not found.exact:
        lines.append(
            "false-alarm rate: approximate, from the p-values of the log; --detector makes it exact"
        )
    return "\n".join(lines)
