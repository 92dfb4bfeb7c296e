"""The submit command: ``diffguard-pl submit --config ldm.yaml --nodes 2 --gpus 8``.

Puts a run into the queue of a SLURM cluster, through submitit. Arguments that are not its own go to ``diffguard_pl.test``.
The folder of the run is chosen at once; the job's log and submitit's files are in its ``slurm/``. With ``--shards`` the run is
a job array, and another job puts the shards together.
"""

import argparse
import io
import re
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from .errors import one_line_errors, require

GRACE = 120
"""Seconds between the warning and the end of a job's time; SLURM may be a minute early."""


def main(args: list[str] | None = None) -> None:
    """Submit as the command line says."""
    options, rest = parsed(sys.argv[1:] if args is None else args)
    with one_line_errors():
        submit(options, rest)


def parsed(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What is ours, and what is the test command's."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl submit",
        description="Run a test on a SLURM cluster. Any other argument goes to python -m diffguard_pl.test.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument(
        "--gpus", type=int, default=1, help="of each node, one process each; 0: on CPUs"
    )
    parser.add_argument(
        "--tasks", type=int, default=1, help="processes of each node where there are no GPUs"
    )
    parser.add_argument("--cpus", type=int, default=8, help="of each process")
    parser.add_argument(
        "--time",
        default="24:00:00",
        help="as sbatch has it: MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS, ...",
    )
    parser.add_argument("--partition", help="the cluster's own choice if not given")
    parser.add_argument("--account", help="the same")
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="any other of sbatch's, e.g. mem=64G",
    )
    parser.add_argument(
        "--shards",
        type=int,
        help="a job array of so many jobs of --nodes and --gpus each, put together at the end",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the batch file, and do nothing"
    )
    return parser.parse_known_args(args)


def submit(options: argparse.Namespace, args: list[str]) -> None:
    """Put a run into the queue, or print what would be.

    Raises:
        InputError: submitit or SLURM is missing, a setting is wrong, SLURM refuses the job.
    """
    require("submitit", extra="cluster")
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if not options.dry_run and not shutil.which("sbatch"):
        raise InputError(
            "there is no sbatch here; submit from a login node of a SLURM cluster, or see the job with --dry-run"
        )
    if options.shards is not None and (options.shards < 1 or resumed(args)):
        raise InputError(
            "shards: expected 1 or more, and no --resume; the shards of a run are resumed one by one"
        )
    check(args)
    parameters, args = job(options), on_devices(options, args)
    folder, made = run_folder(args, make=not options.dry_run)
    commands = [args if resumed(args) else [*args, "--trainer.default_root_dir", str(folder)]]
    if options.shards:
        commands = [
            [
                *args,
                "--shard",
                f"{i}/{options.shards}",
                "--trainer.default_root_dir",
                str(folder / str(i)),
            ]
            for i in range(options.shards)
        ]
    if options.dry_run:
        print(batch_file(folder, parameters, options.shards))
        for command in commands:
            print(f"# {shlex.join(['python', '-m', 'diffguard_pl.test', *command])}")
        return
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints there what its exception says
            described = queued(folder, parameters, commands, options)
    except (FailedJobError, FailedSubmissionError) as error:
        if made:
            shutil.rmtree(folder)
        raise InputError(f"SLURM refused the job: {' '.join(str(error).split())}") from error
    print(described)


def queued(
    folder: Path, parameters: dict[str, Any], commands: list[list[str]], options: argparse.Namespace
) -> str:
    """Submit the commands as one job or as an array with a job to put it together; what to tell."""
    if not options.shards:
        job = executor(folder, parameters).submit(run_test, commands[0])
        return f"job {job.job_id}\nlog: {shown(job.paths.stdout)}\nrun: {folder}"
    jobs = executor(folder, parameters).map_array(run_test, commands)
    array = jobs[0].job_id.partition("_")[0]
    places = {
        name: value
        for name, value in parameters.items()
        if name in ("partition", "account", "additional_parameters")
    }
    # not afterok: a shard of which images were left out ends with status 3, and what is not complete will be refused
    after = {
        "job_name": "diffguard-merge",
        "dependency": f"afterany:{array}",
        "time": 60,
        "stderr_to_stdout": True,
    }
    last = executor(folder, places | after).submit(
        put_together, str(folder), [str(folder / str(i)) for i in range(options.shards)]
    )
    lines = [f"job {array}, an array of {len(jobs)}, and {last.job_id}, which puts it together"]
    return "\n".join(
        [
            *lines,
            f"log: {shown(jobs[0].paths.stdout)}, ..., {shown(last.paths.stdout)}",
            f"run: {folder}",
        ]
    )


def run_test(args: list[str]) -> None:
    """One process of a run, in a job."""
    from .. import test
    from . import evaluate

    # The record of the run then has the command that does the same.
    sys.argv[0] = test.__file__
    evaluate.main(args)


def put_together(out: str, shards: list[str]) -> None:
    """Put the shards of a run together, in a job."""
    from . import merge

    merge.main([out, *shards])


def job(options: argparse.Namespace) -> dict[str, Any]:
    """The job in submitit's terms."""
    tasks, time = options.gpus or options.tasks, minutes(options.time)
    if time <= GRACE // 60 + 2:
        raise InputError(
            f"time={options.time}: the job would be told to stop before it begins; give it {GRACE // 60 + 3} minutes or more"
        )
    more = dict(part.partition("=")[::2] for part in options.sbatch)
    parameters = {
        "job_name": "diffguard",
        "nodes": options.nodes,
        "ntasks_per_node": tasks,
        "gpus_per_node": options.gpus or None,
        "cpus_per_task": options.cpus,
        "time": time,
        "partition": options.partition,
        "account": options.account,
        "signal_delay_s": GRACE,
        "stderr_to_stdout": True,
        "setup": [
            f"export SRUN_CPUS_PER_TASK={options.cpus}",
            f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{options.cpus}}}",
        ],
        "srun_args": ["--kill-on-bad-exit=1", "--open-mode=append"],
        "teardown": [f"{shlex.quote(sys.executable)} -m diffguard_pl.runs.after_job $?"],
        "additional_parameters": {"requeue": True}
        | {name: value or True for name, value in more.items()},
    }
    return {name: value for name, value in parameters.items() if value is not None}


def minutes(time: str) -> int:
    """A time limit as sbatch has it, in minutes, rounded up."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not found:
        raise InputError(
            f"time={time}: expected MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS or DAYS-HOURS:MINUTES"
        )
    days, *parts = found.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is None and parts[2] is None:
        return first + (second > 0)
    return int(days or 0) * 1440 + first * 60 + second + (third > 0)


def resumed(args: list[str]) -> str | None:
    """The folder that the run is to go on in."""
    return value_of("--resume", args)


def value_of(name: str, args: list[str]) -> str | None:
    """What an argument of the test command is given, the last time."""
    found = None
    for i, word in enumerate(args):
        option, equals, value = word.partition("=")
        if option == name:
            found = value if equals else next(iter(args[i + 1 :]), None)
    return found


def on_devices(options: argparse.Namespace, args: list[str]) -> list[str]:
    """The arguments with those that follow from the job."""
    devices = [
        "--trainer.devices",
        str(options.gpus or options.tasks),
        "--trainer.num_nodes",
        str(options.nodes),
    ]
    return ["--trainer.accelerator", "gpu" if options.gpus else "cpu", *args, *devices]


def run_folder(args: list[str], make: bool) -> tuple[Path, bool]:
    """Where the run goes, and whether the folder was made now."""
    if given := resumed(args) or value_of("--trainer.default_root_dir", args):
        return Path(given), False
    from .cli import make_new_folder, resolve_configs

    folder = f"runs/{resolve_configs(args)[1]}/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    return Path(make_new_folder(folder) if make else folder), make


def check(args: list[str]) -> None:
    """End the process with one line where the test command would not understand its arguments, before they wait for hours."""
    from . import evaluate

    try:
        with redirect_stdout(io.StringIO()):
            evaluate.main([*args, "--print_config"])
    except SystemExit as ended:
        if ended.code:
            raise


def executor(folder: Path, parameters: dict[str, Any]) -> Any:
    """submitit's, which keeps its files and the logs in the run's folder."""
    import submitit

    made = submitit.SlurmExecutor(folder / "slurm")
    made.update_parameters(**parameters)
    return made


def batch_file(folder: Path, parameters: dict[str, Any], shards: int | None) -> str:
    """What sbatch would get; SLURM itself need not be there."""
    from submitit.slurm.slurm import _make_sbatch_string

    place = (folder / "slurm").absolute()
    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(place)])
    return _make_sbatch_string(command, place, map_count=shards, **parameters)


def shown(path: Path) -> str:
    """Relative to the working directory, where it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
