"""The command line: ``diffguard-pl COMMAND ...``, which is ``python -m diffguard_pl COMMAND ...``."""

import sys
from importlib import import_module

COMMANDS = {
    "test": "Evaluate DiffGuard on in-distribution and OOD datasets.",
    "calibrate": "Set the threshold of a detector on in-distribution images and write a detector file.",
    "score": "Accept or reject images with a detector file.",
    "demo": "Serve a web page to try a detector.",
    "report": "Rebuild the report page of a run, or compare runs.",
    "analyze": "Measure how well the classifier sees through noise (Fig. 2 of the paper).",
    "sweep": "Run the grid of a W&B sweep file on this machine.",
    "submit": "Submit a test to a SLURM cluster.",
    "merge": "Merge the shards of a run and report.",
    "data": "Check which datasets are present, and download the published ones.",
    "checkpoints": "List, fetch and convert checkpoints.",
}
"""Each command and its line in ``--help``; the code of ``NAME`` is in ``commands/NAME.py`` (``test``: ``evaluate.py``)."""


def main(args: list[str] | None = None) -> None:
    """Run a command.

    Args:
        args: Name of the command and its arguments. Defaults to the process's arguments.
    """
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print("usage: diffguard-pl COMMAND ...\n\ncommands:")
        for name, line in COMMANDS.items():
            print(f"  {name:<12} {line}")
        print("\ndiffguard-pl COMMAND --help describes the arguments of a command.")
        return
    if args[0] not in COMMANDS:
        sys.exit(f"error: unknown command {args[0]!r}; choose from: {', '.join(COMMANDS)}")
    module = "evaluate" if args[0] == "test" else args[0]
    import_module(f".commands.{module}", __package__).main(args[1:])


if __name__ == "__main__":
    main()
