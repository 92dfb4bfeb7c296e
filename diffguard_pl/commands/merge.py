"""Puts the shards of a run together: ``diffguard-pl merge OUT SHARD_DIR [SHARD_DIR ...]``."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..report.gallery import (
    Candidate,
    candidate_for,
    choose_candidates,
    picture_paths,
    read_picture,
)
from ..runs import record
from ..runs.files import atomic_write
from ..runs.lock import lock_run_folder, releasing_locks
from ..runs.store import SCORES_FOLDER, part_files, read_header, read_scores
from .cli import parse_shard
from .errors import one_line_errors
from .report import report


def main(args: list[str] | None = None) -> None:
    """Merge as the command line says."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl merge",
        description="Put the shards of a run together (test --shard I/N), and report.",
    )
    parser.add_argument("out", type=Path, help="folder of the whole run, to be made")
    parser.add_argument("shard", type=Path, nargs="+", help="folder of a shard")
    given = parser.parse_args(args)
    with one_line_errors(), releasing_locks():
        lock_run_folder(given.out)
        merge(given.out, given.shard)
        report([given.out])


def merge(out: Path, shards: Sequence[Path]) -> None:
    """Copy scores and pictures of all shards of a run, and its settings.

    Raises:
        InputError: a shard is missing, is not done, or is of another run; ``out`` has scores.
    """
    if part_files(out):
        raise InputError(
            f"run folder {out}: holds the results of another run; choose another, or remove them"
        )
    records = [record.read_record(folder) for folder in shards]
    _check(shards, records)
    first = records[0]
    config = first["config"] | {"shard": None}
    sessions = [
        session | {"shard": run_record["config"]["shard"]}
        for run_record in records
        for session in run_record["sessions"]
    ]
    whole = {
        "config": config,
        "sessions": sorted(sessions, key=lambda session: str(session.get("began"))),
    }
    if all("images" in run_record for run_record in records):
        whole["images"] = {
            name: sum(run_record["images"][name] for run_record in records)
            for name in first["images"]
        }
    record.write_record(out, first | whole)
    with atomic_write(out / record.CONFIG_FILE) as unfinished:
        unfinished.write_text(yaml.safe_dump(config, sort_keys=False))
    _copy_pictures(out, shards)
    session = 0
    for folder in shards:
        numbers: dict[str, int] = {}  # each session of a shard becomes one of the run
        for part in part_files(folder):
            _, of_shard, rank, count = part.stem.split("-")
            number = numbers.setdefault(of_shard, session + len(numbers))
            with atomic_write(
                out / SCORES_FOLDER / f"part-{number:03}-{rank}-{count}.parquet"
            ) as unfinished:
                shutil.copyfile(part, unfinished)
        session += len(numbers)


def _check(shards: Sequence[Path], records: Sequence[dict[str, Any]]) -> None:
    """Raise an `InputError` unless these are all shards of one run, and done."""
    found: dict[int, Path] = {}
    count = 0
    for folder, run_record in zip(shards, records, strict=True):
        if not part_files(folder):
            raise InputError(
                f"{folder}: not a diffguard_pl run: {SCORES_FOLDER}/part-*.parquet not found"
            )
        shard = run_record.get("config", {}).get("shard")
        if shard is None:
            raise InputError(
                f"{folder}: no shard of a run (test --shard I/N); diffguard-pl report compares whole runs"
            )
        if not run_record["sessions"][-1].get("ended"):
            raise InputError(
                f"{folder}: shard {shard} is not done; python -m diffguard_pl.test --resume {folder} goes on with it"
            )
        number, of = parse_shard(shard)
        if number in found:
            raise InputError(f"{folder}: shard {shard} is in {found[number]} already")
        found[number], count = folder, count or of
        before, now = (
            {**of_run["config"], "shard": of}
            for of_run, of in ((records[0], count), (run_record, of))
        )
        if why := record.first_difference(before, now):
            raise InputError(
                f"{folder} is of another run than {shards[0]}: {why.replace(' when the run began and', ' there,')}"
            )
        for name in {*records[0].get("weights", {}), *run_record.get("weights", {})}:
            if records[0]["weights"].get(name) != run_record["weights"].get(name):
                raise InputError(
                    f"{folder} is of another run than {shards[0]}: the weights of the {name} are not the same"
                )
        if read_header(part_files(folder)[0]) != read_header(part_files(shards[0])[0]):
            raise InputError(
                f"{folder} is of another run than {shards[0]}: its scores are of other names"
            )
    missing = sorted(set(range(count)) - set(found))
    if missing:
        raise InputError(
            f"of {count} shards these are missing: {', '.join(f'{number}/{count}' for number in missing)}"
        )


def _copy_pictures(out: Path, shards: Sequence[Path]) -> None:
    """Those that one run would have kept, of what the shards have kept."""
    for_count = record.read_record(shards[0])["config"].get("pictures", {}).get("count", 0)
    kept: dict[str, dict[Candidate, Path]] = {}
    for folder in shards:
        frame, described = read_scores(folder)
        scores = frame.set_index(["dataset", "index"])[described.scores[0]].to_dict()
        for path in picture_paths(folder):
            try:
                found = read_picture(path)
                chosen = candidate_for(
                    found.dataset, found.index, scores[found.dataset, found.index]
                )
            except (OSError, KeyError, ValueError):
                continue  # damaged; the scores are not
            kept.setdefault(found.dataset, {})[chosen] = path
    for of_set in kept.values():
        for chosen in choose_candidates(list(of_set), for_count):
            path = of_set[chosen]
            with atomic_write(out / path.relative_to(path.parents[2])) as unfinished:
                shutil.copyfile(path, unfinished)
