"""The command ``diffguard-pl submit --config ldm --nodes 2 --gpus 8``.

It submits a test to a SLURM cluster through submitit. The folder of the run is chosen at once; the
job's log and submitit's files go to its ``slurm/``. With ``--shards`` the run is a job array, and
another job merges the shards.
"""

import argparse
import io
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..runs.lock import make_new_folder
from ..runs.slurm import batch_file, executor, job_parameters
from .errors import one_line_errors, require

MERGE_MINUTES = 60


def main(args: list[str] | None = None) -> None:
    """Submit a test.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    given, test_args = parser().parse_known_args(args)
    with one_line_errors():
        submit(given, test_args)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command. Arguments that it does not know are those of the test."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl submit",
        description="Submit a test to a SLURM cluster. All other arguments are those of "
        "diffguard-pl test.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--nodes", type=int, default=1, help="number of nodes (default: %(default)s)")
    add(
        "--gpus",
        type=int,
        default=1,
        help="GPUs per node, with one process each; 0 to run on CPUs (default: %(default)s)",
    )
    add(
        "--tasks",
        type=int,
        default=1,
        help="processes per node if --gpus is 0 (default: %(default)s)",
    )
    add("--cpus", type=int, default=8, help="CPU cores per process (default: %(default)s)")
    add(
        "--time",
        default="24:00:00",
        help="time limit as for sbatch: MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS, ... "
        "(default: %(default)s)",
    )
    add("--partition", help="partition (default: the cluster's)")
    add("--account", help="account to charge (default: the cluster's)")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="any other option of sbatch, e.g. mem=64G; may be repeated",
    )
    add(
        "--shards",
        type=int,
        help="split the run into a job array of this size, each job with --nodes and --gpus, and "
        "merge the results",
    )
    add("--dry-run", action="store_true", help="print the batch file and submit nothing")
    return parser


def submit(given: argparse.Namespace, test_args: list[str]) -> None:
    """Submit a test, or print its batch file.

    Args:
        given: Parsed arguments of the command.
        test_args: Arguments of the test.

    Raises:
        InputError: submitit or SLURM is missing, a setting is wrong, or SLURM refuses the job.
    """
    require("submitit")
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    _check(given, test_args)
    parameters = job_parameters(
        given.nodes,
        given.gpus,
        given.tasks,
        given.cpus,
        given.time,
        given.partition,
        given.account,
        given.sbatch,
    )
    test_args = _with_devices(given, test_args)
    folder, is_new = _run_folder(test_args, make=not given.dry_run)
    commands = _commands(folder, test_args, given.shards)
    if given.dry_run:
        print(batch_file(folder, parameters, given.shards))
        for command in commands:
            print(f"# {shlex.join(['python', '-m', 'diffguard_pl.test', *command])}")
        return
    try:
        # submitit prints to standard error what its exception says
        with redirect_stderr(io.StringIO()):
            if given.shards:
                summary = _queue_array(folder, parameters, commands)
            else:
                summary = _queue_job(folder, parameters, commands[0])
    except (FailedJobError, FailedSubmissionError) as error:
        if is_new:
            shutil.rmtree(folder)
        raise InputError(f"SLURM refused the job: {' '.join(str(error).split())}") from error
    print(summary)


def run_test(test_args: list[str]) -> None:
    """Run one process of a test, inside a job."""
    from .. import test
    from . import evaluate

    # The record of the run then names the command that does the same without a cluster.
    sys.argv[0] = test.__file__
    evaluate.main(test_args)


def merge_shards(out: str, shards: list[str]) -> None:
    """Merge the shards of a run, inside a job."""
    from . import merge

    merge.main([out, *shards])


def _check(given: argparse.Namespace, test_args: list[str]) -> None:
    """Check the arguments, and those of the test, before they wait in a queue for hours."""
    if not given.dry_run and not shutil.which("sbatch"):
        raise InputError(
            "sbatch not found; submit from a login node of a SLURM cluster, or show the job with "
            "--dry-run"
        )
    if given.shards is not None and given.shards < 1:
        raise InputError(f"--shards {given.shards}: must be at least 1")
    if given.shards is not None and _value_of("--resume", test_args):
        raise InputError("--shards: cannot be combined with --resume; resume each shard by itself")

    from . import evaluate

    try:
        with redirect_stdout(io.StringIO()):
            evaluate.main([*test_args, "--print_config"])
    except SystemExit as ended:
        if ended.code:
            raise


def _with_devices(given: argparse.Namespace, test_args: list[str]) -> list[str]:
    """Return the arguments of the test with the trainer's settings that follow from the job."""
    accelerator = "gpu" if given.gpus else "cpu"
    processes = str(given.gpus or given.tasks)
    return [
        *("--trainer.accelerator", accelerator),
        *test_args,
        *("--trainer.devices", processes),
        *("--trainer.num_nodes", str(given.nodes)),
    ]


def _run_folder(test_args: list[str], make: bool) -> tuple[Path, bool]:
    """Return the folder of the run, and whether it has just been made."""
    given = _value_of("--resume", test_args) or _value_of("--trainer.default_root_dir", test_args)
    if given:
        return Path(given), False
    from .cli import resolve_configs

    folder = Path(f"runs/{resolve_configs(test_args)[1]}/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    return make_new_folder(folder)[0] if make else folder, make


def _commands(folder: Path, test_args: list[str], shards: int | None) -> list[list[str]]:
    """Return the arguments of each test: one, or one for each shard."""
    if shards:
        return [
            [
                *test_args,
                *("--shard", f"{i}/{shards}"),
                *("--trainer.default_root_dir", str(folder / str(i))),
            ]
            for i in range(shards)
        ]
    if _value_of("--resume", test_args):
        return [test_args]
    return [[*test_args, "--trainer.default_root_dir", str(folder)]]


def _queue_job(folder: Path, parameters: dict[str, Any], command: list[str]) -> str:
    """Submit a test as one job, and describe the job."""
    job = executor(folder, parameters).submit(run_test, command)
    return f"job {job.job_id}\nlog: {_relative(job.paths.stdout)}\nrun: {folder}"


def _queue_array(folder: Path, parameters: dict[str, Any], commands: list[list[str]]) -> str:
    """Submit shards as a job array and a job that merges them, and describe the jobs."""
    jobs = executor(folder, parameters).map_array(run_test, commands)
    array = jobs[0].job_id.partition("_")[0]
    kept = ("partition", "account", "additional_parameters")
    merge_parameters = {name: parameters[name] for name in kept if name in parameters} | {
        "job_name": "diffguard-merge",
        # Not afterok: a shard with unusable images ends with status 3. The merge itself refuses
        # incomplete shards.
        "dependency": f"afterany:{array}",
        "time": MERGE_MINUTES,
        "stderr_to_stdout": True,
    }
    shards = [str(folder / str(i)) for i in range(len(commands))]
    merge = executor(folder, merge_parameters).submit(merge_shards, str(folder), shards)
    return (
        f"job {array}, an array of {len(jobs)}, and job {merge.job_id}, which merges them\n"
        f"log: {_relative(jobs[0].paths.stdout)}, ..., {_relative(merge.paths.stdout)}\n"
        f"run: {folder}"
    )


def _value_of(name: str, args: list[str]) -> str | None:
    """Return the last value of an option, written as ``NAME VALUE`` or ``NAME=VALUE``."""
    found = None
    for i, word in enumerate(args):
        option, equals, value = word.partition("=")
        if option == name:
            found = value if equals else next(iter(args[i + 1 :]), None)
    return found


def _relative(path: Path) -> Path:
    """Return a path relative to the working directory, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
