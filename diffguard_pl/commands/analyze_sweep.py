"""The command ``diffguard-pl analyze sweep``: results against one or two settings (Fig. 7).

Each point is a test of its own, a process with a folder, so it resumes like any other run, and
points that were computed elsewhere are drawn by ``diffguard-pl report RUN... --against SETTING``.
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ..errors import InputError
from ..runs.record import CONFIG_FILE, last_session, read_record
from ..runs.signals import GracefulTermination
from .errors import LEFT_OUT, one_line_errors
from .report import report_curve

FIXED = ("--resume", "--trainer.default_root_dir", "--shard")
"""Options of a test that the sweep decides."""


def main(args: list[str]) -> None:
    """Run a test for each value, then write ``sweep.csv`` and ``sweep.png`` and print a table.

    Args:
        args: Arguments of the command; those that it does not know are those of the tests.
    """
    given, test_args = parser().parse_known_args(args)
    with one_line_errors():
        sweep(given.vary, given.out, test_args)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl analyze sweep",
        description="Run a test for each value of one setting or each pair of values of two, and "
        "draw the AUROC of the primary score, averaged over all datasets (Fig. 7 of the paper). "
        "All other arguments are those of diffguard-pl test.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="SETTING=A,B,...",
        help="setting and its values, all numbers; the second --vary makes a curve of each value",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder of the sweep; a sweep that was interrupted goes on in its folder "
        "(default: a new one in runs/analyze/sweep)",
    )
    return parser


def sweep(vary: Sequence[str], out: Path | None, test_args: Sequence[str]) -> None:
    """Run the tests, and report on them.

    Args:
        vary: Settings and their values, ``SETTING=A,B,...``.
        out: Folder of the sweep. None for a new one.
        test_args: Arguments of every test.

    Raises:
        InputError: A setting has no values, or an argument is not for tests.
    """
    values = dict(parse_values(text) for text in vary)
    if len(values) < len(vary) or len(vary) > 2:
        raise InputError(f"--vary {vary[-1]}: must be given once or twice, for different settings")
    for option in test_args:
        if option.partition("=")[0] in FIXED:
            raise InputError(f"{option}: cannot be used in a sweep; --out chooses its folder")
    folder = out or Path("runs/analyze/sweep") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"

    runs, worst = [], 0
    with one_line_errors(f"to go on with the sweep, add --out {folder}") as stop:
        # Curve after curve: the last setting is the outer loop.
        for combination in itertools.product(*reversed(values.values())):
            settings = dict(zip(values, reversed(combination), strict=True))
            run = folder / run_name(settings)
            runs.append(run)
            if is_finished(run):
                continue
            print(f"{run.name}:", flush=True)
            status = run_test(arguments_of(run, settings, test_args), stop)
            stop.check()
            if status not in (0, LEFT_OUT):
                print(f"to go on with the sweep, add --out {folder}", file=sys.stderr)
                sys.exit(status)
            worst = max(worst, status)
        report_curve(runs, list(values), folder / "sweep.png")
    sys.exit(worst)


def parse_values(text: str) -> tuple[str, list[str]]:
    """Return the setting and the values of ``SETTING=A,B,...``, each value a number as given.

    Raises:
        InputError: It has another form.
    """
    name, _, listed = text.partition("=")
    values = listed.split(",")
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    if not name or not numbers or len(set(numbers)) < len(numbers):
        raise InputError(
            f"--vary {text}: must be SETTING=A,B,... with different numbers, for example "
            "model.steps=5,10,25"
        )
    return name.removeprefix("--"), values


def run_name(settings: dict[str, str]) -> str:
    """Return the name of a run's folder, such as ``cam_cut=0.2,steps=25``."""
    return ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items())


def arguments_of(run: Path, settings: dict[str, str], test_args: Sequence[str]) -> list[str]:
    """Return the arguments of one test, which resumes the run if it has begun."""
    place = "--resume" if (run / CONFIG_FILE).is_file() else "--trainer.default_root_dir"
    changes = [f"--{name}={value}" for name, value in settings.items()]
    return [*test_args, *changes, place, str(run)]


def is_finished(run: Path) -> bool:
    """Return whether a run has scored all of its images."""
    return bool(last_session(read_record(run)).get("ended"))


def run_test(args: Sequence[str], stop: GracefulTermination) -> int:
    """Run a test in a process of its own, and return its exit status.

    Args:
        args: Arguments of the test.
        stop: Termination of this process, which passes signals on and lets the test end by itself.
    """
    test = subprocess.Popen([sys.executable, "-m", "diffguard_pl.test", *args])
    stop.deferred, stop.forward_signal = True, test.send_signal
    try:
        return test.wait()
    finally:
        stop.deferred, stop.forward_signal = False, lambda signum: None
