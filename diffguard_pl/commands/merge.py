"""The command ``diffguard-pl merge OUT SHARD...``: merges the shards of a run."""

import argparse
from pathlib import Path

from .errors import one_line_errors


def main(args: list[str] | None = None) -> None:
    """Merge the shards of a run.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="diffguard-pl merge",
        description="Merge the shards of a run (test --shard I/N) and build its report.",
    )
    parser.add_argument("out", type=Path, help="folder of the merged run, which is created")
    parser.add_argument("shard", type=Path, nargs="+", help="folder of a shard")
    given = parser.parse_args(args)

    from ..report.merge_shards import merge_shards
    from ..runs.lock import lock_run_folder, releasing_locks
    from .report import report

    go_on = f"remove {given.out}, then repeat the command"
    with one_line_errors(go_on), releasing_locks():
        lock_run_folder(given.out)
        merge_shards(given.out, given.shard)
        report([given.out])
