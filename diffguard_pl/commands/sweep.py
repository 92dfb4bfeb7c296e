"""The sweep command: ``diffguard-pl sweep digits_guidance``.

Runs the grid of a W&B sweep file on this machine, without a server, one combination after the other, each as ``wandb agent`` would
start it. What is given after the file is added to every command. A combination is a run in ``runs/sweeps/NAME/COMBINATION``: begun
again, the sweep leaves out those that have a ``metrics.csv``, and resumes the one that was interrupted.
"""

import argparse
import csv
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..config import find_config, read
from ..errors import InputError
from ..runs.record import read_record
from ..runs.store import part_files

DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]
METRICS = "metrics.csv"
LEFT_OUT = 3
"""Exit status of a run of which images were left out."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        name: of the file, without ``.yaml``.
        program: what ``${program}`` stands for.
        command: with its macros.
        combinations: values by parameter, one after the other.
        metric: SET/SCORE/FIGURE, as in the names of what runs log; the set may be a group.
        maximize: whether more is better.
    """

    name: str
    program: str
    command: list[str]
    combinations: list[dict[str, Any]]
    metric: tuple[str, str, str]
    maximize: bool


def main(args: list[str] | None = None) -> None:
    """Run a sweep as the command line says."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl sweep",
        description="Run the grid of a W&B sweep file on this machine.",
    )
    parser.add_argument(
        "sweep", help="path of a sweep file, or the name of a shipped one, such as digits_guidance"
    )
    parser.add_argument(
        "extra",
        nargs=argparse.REMAINDER,
        help="further arguments of every run, such as --data.limit 50",
    )
    options = parser.parse_args(args)
    try:
        failed = run(load(options.sweep), options.extra)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")
    if failed:
        sys.exit(f"error: {failed} of the runs failed; the same command begins them again")


def load(name: str) -> Sweep:
    """A sweep by the path of its file, or by the name of a shipped one.

    Raises:
        InputError: there is none, or something in it can only be done by a W&B server.
    """
    file = Path(name) if Path(name).is_file() else find_config(f"sweeps/{name}")
    content = read(file)
    if (method := content.get("method")) != "grid":
        raise InputError(
            f"sweep {file}: method: {method} needs a W&B server (wandb sweep {file}); here there is grid"
        )
    metric = content.get("metric") or {}
    names = str(metric.get("name")).rsplit("/", 2)
    if len(names) != 3 or metric.get("goal") not in ("maximize", "minimize"):
        raise InputError(
            f"sweep {file}: metric: expected name: SET/SCORE/FIGURE and goal: maximize or minimize, found {metric}"
        )
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(f"sweep {file}: parameters: expected value or values by name")
    command = [str(part) for part in content.get("command") or DEFAULT_COMMAND]
    known = macros("", {})
    for part in command:
        if part.startswith("${") and part not in known and not part.startswith("${envvar:"):
            raise InputError(
                f"sweep {file}: command: no macro {part}; there are: {', '.join(known)}"
            )
    if "program" not in content and "${program}" in command:
        raise InputError(
            f"sweep {file}: program: expected what ${{program}} in the command stands for"
        )
    choices = [_choices(file, name, given) for name, given in parameters.items()]
    combinations = [
        dict(zip(parameters, values, strict=True)) for values in itertools.product(*choices)
    ]
    goal = metric["goal"] == "maximize"
    return Sweep(
        file.stem,
        str(content.get("program", "")),
        command,
        combinations,
        (names[0], names[1], names[2]),
        goal,
    )


def _choices(file: Path, name: str, given: Any) -> list[Any]:
    if isinstance(given, Mapping) and set(given) == {"value"}:
        return [given["value"]]
    if (
        isinstance(given, Mapping)
        and set(given) == {"values"}
        and isinstance(given["values"], list)
        and given["values"]
    ):
        return given["values"]
    raise InputError(
        f"sweep {file}: parameters.{name}: expected value, or a list of values, found {given}"
    )


def macros(program: str, combination: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the macros of a command stand for, as ``wandb agent`` has it; the interpreter is this one."""
    flags = [f"{name}={value}" for name, value in combination.items()]
    return {
        "${env}": [] if sys.platform == "win32" else ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [program],
        "${args}": [f"--{flag}" for flag in flags],
        "${args_no_hyphens}": flags,
        "${args_no_equals}": [
            part for name, value in combination.items() for part in (f"--{name}", str(value))
        ],
    }


def command(sweep: Sweep, combination: Mapping[str, Any]) -> list[str]:
    """The command of one combination."""
    known = macros(sweep.program, combination)
    found = [word for part in sweep.command for word in known.get(part, [part])]
    return [
        re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda name: os.environ.get(name[1], ""), word)
        for word in found
    ]


def title(combination: Mapping[str, Any]) -> str:
    """A combination in words that can be the name of a folder."""
    words = ",".join(
        f"{name.removeprefix('model.')}={json.dumps(value)}" for name, value in combination.items()
    )
    plain = re.sub(r"[^\w.=,+-]", "", words)[:200]
    unlike = words.replace('"', "") != plain  # others may lose what tells them from this one
    return plain + (f"-{sha256(words.encode()).hexdigest()[:8]}" if unlike else "")


def run(sweep: Sweep, extra: list[str]) -> int:
    """Run what is left of a sweep, and print the results; how many runs failed."""
    folder = Path("runs/sweeps") / sweep.name
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder, sweep, extra)
    tags = ",".join(filter(None, [os.environ.get("WANDB_TAGS"), "sweep", sweep.name]))
    environment = (
        {"WANDB_RUN_GROUP": sweep.name}
        | os.environ
        | {"WANDB_TAGS": tags, "NO_COLOR": "1", "COLUMNS": "132"}
    )
    failed, began, done = 0, time.monotonic(), 0
    for i, combination in enumerate(sweep.combinations, 1):
        place = folder / title(combination)
        said = f"[{i}/{len(sweep.combinations)}] {place.name}"
        if _finished(place):
            print(f"{said}: finished before", flush=True)
            continue
        log = folder / f"{place.name}.log"
        print(f"{said}: runs; tail -f {log}", flush=True)
        words = [*command(sweep, combination), *extra, "--trainer.default_root_dir", str(place)]
        if part_files(place):
            words += ["--resume", str(place)]
        with log.open("w") as file:
            status = subprocess.run(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            ).returncode
        if not _finished(place):
            failed += 1
            print(f"{said}: failed with status {status}: {_last_line(log)}", flush=True)
            continue
        done += 1
        left = (time.monotonic() - began) / done * (len(sweep.combinations) - i)
        late = (
            ""
            if status in (0, LEFT_OUT)
            else f"; but then it failed with status {status}: {_last_line(log)}"
        )
        print(
            f"{said}: {100 * _figure(place, sweep.metric):.2f}; about {left / 60:.0f} min left{late}",
            flush=True,
        )
    _print_results(folder, sweep)
    return failed


def _check_same(folder: Path, sweep: Sweep, extra: list[str]) -> None:
    """Raise an `InputError` where runs of the folder were made by another command."""
    mine, kept = json.dumps([sweep.program, sweep.command, extra]), folder / "command.json"
    if kept.exists() and kept.read_text() != mine and any(folder.glob(f"*/{METRICS}")):
        raise InputError(
            f"{folder} holds runs of another command or other arguments, see {kept}; rename or remove it"
        )
    kept.write_text(mine)


def _finished(run: Path) -> bool:
    """Whether a run came to its end; a report of a part of it writes its table, too."""
    return (run / METRICS).exists() and bool(
        read_record(run).get("sessions", [{}])[-1].get("ended")
    )


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:200]} ({log})" if lines else str(log)


def _figure(run: Path, metric: tuple[str, str, str]) -> float:
    """The metric of a run that is finished.

    Raises:
        InputError: it has none of that name.
    """
    of, score, figure = metric
    with (run / METRICS).open(newline="") as file:
        for row in csv.DictReader(file):
            found = row.get("group") if row.get("dataset") == "mean" else row.get("dataset")
            if (found, row.get("score")) == (of, score) and figure in row:
                return float(row[figure])
    raise InputError(f"metric {'/'.join(metric)}: not in {run / METRICS}")


def _print_results(folder: Path, sweep: Sweep) -> None:
    found = [(c, folder / title(c)) for c in sweep.combinations if _finished(folder / title(c))]
    ranked = [(_figure(place, sweep.metric), combination, place) for combination, place in found]
    ranked.sort(
        key=lambda result: (math.isnan(result[0]), -result[0] if sweep.maximize else result[0])
    )
    table = Table(title=f"{sweep.name}: {'/'.join(sweep.metric)} in percent, the best first")
    for name in sweep.combinations[0]:
        table.add_column(name, justify="right")
    table.add_column(sweep.metric[2], justify="right")
    table.add_column("run", overflow="fold")
    for value, combination, place in ranked:
        table.add_row(
            *[str(part) for part in combination.values()], f"{100 * value:.2f}", str(place)
        )
    Console().print(table)
