"""The command line: ``diffguard-pl COMMAND``, the same as ``python -m diffguard_pl COMMAND``."""

import difflib
import sys
from importlib import import_module

from . import __version__
from .commands.errors import one_line_errors
from .imports import exiting_at_once_after_help, garbage_collection_paused
from .trusted import without_flags

COMMANDS = {
    "test": "Evaluate DiffGuard on in-distribution and OOD datasets.",
    "calibrate": "Calibrate a threshold on in-distribution images; write a detector file.",
    "score": "Accept or reject images with a detector file.",
    "serve": "Decide on images over HTTP, in batches that fill across requests.",
    "demo": "Serve a web page to try a detector.",
    "watch": "Has the stream of images that were scored changed?",
    "report": "Rebuild the report page of a run, or compare runs.",
    "analyze": "Measure what Figs. 2, 4, 6 and 7 of the paper show.",
    "submit": "Submit a test to a SLURM cluster.",
    "merge": "Merge the shards of a run and build its report.",
    "data": "Check which datasets are present, or download the published ones.",
    "checkpoints": "List, fetch and convert checkpoints.",
}
"""Each command and its line in ``--help``.

Its code is in ``commands/COMMAND.py``, that of ``test`` in ``commands/evaluate.py``.
"""


def main(args: list[str] | None = None) -> None:
    """Run a command.

    Args:
        args: Name of the command and its arguments. Defaults to those of the process.
    """
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    with one_line_errors():
        run(name, without_flags(rest))


def run(name: str, args: list[str]) -> None:
    """Run a command by its name, or print the help or the version."""
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"diffguard-pl {__version__}")
    elif name in COMMANDS:
        module = "evaluate" if name == "test" else name
        with garbage_collection_paused():
            command = import_module(f".commands.{module}", __package__)
        command.main(args)
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(
            f"error: unknown command {name!r}; {hint}choose from: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        sys.exit(2)


def usage() -> str:
    """Return the text of ``--help``."""
    lines = ["usage: diffguard-pl COMMAND ...", "", "commands:"]
    lines += [f"  {name:<12} {line}" for name, line in COMMANDS.items()]
    lines += ["", "diffguard-pl COMMAND --help describes a command. Every command takes --trust"]
    lines += [
        "PACKAGE: configs and detector files may import from it, see docs/how-to/own-classifier.md."
    ]
    return "\n".join(lines)


def console() -> None:
    """Run the command that the process was started for."""
    with exiting_at_once_after_help():
        main()


if __name__ == "__main__":
    console()
