"""Puts the shards of a run together: ``python -m diffguard_pl.merge OUT SHARD_DIR [SHARD_DIR ...]``."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from . import run
from .callbacks.pictures import Chosen, PictureWriter, chosen_for
from .errors import InputError
from .files import replacing
from .owner import claim, releasing
from .report.__main__ import report
from .report.gallery import gallery, load
from .scores import FOLDER, header, parts, read
from .test import one_line_errors, parsed_shard


def main(args: list[str] | None = None) -> None:
    """Merge as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m diffguard_pl.merge", description="Put the shards of a run together (test --shard I/N), and report."
    )
    parser.add_argument("out", type=Path, help="folder of the whole run, to be made")
    parser.add_argument("shard", type=Path, nargs="+", help="folder of a shard")
    given = parser.parse_args(args)
    with one_line_errors(), releasing():
        claim(given.out)
        merge(given.out, given.shard)
        report([given.out])


def merge(out: Path, shards: Sequence[Path]) -> None:
    """Copy scores and pictures of all shards of a run, and its settings.

    Raises:
        InputError: a shard is missing, is not done, or is of another run; ``out`` has scores.
    """
    if parts(out):
        raise InputError(f"run folder {out}: holds the results of another run; choose another, or remove them")
    records = [run.read_record(folder) for folder in shards]
    _check(shards, records)
    first = records[0]
    config = first["config"] | {"shard": None}
    sessions = [session | {"shard": record["config"]["shard"]} for record in records for session in record["sessions"]]
    whole = {"config": config, "sessions": sorted(sessions, key=lambda session: str(session.get("began")))}
    if all("images" in record for record in records):
        whole["images"] = {name: sum(record["images"][name] for record in records) for name in first["images"]}
    run.write_record(out, first | whole)
    with replacing(out / run.CONFIG) as unfinished:
        unfinished.write_text(yaml.safe_dump(config, sort_keys=False))
    _copy_pictures(out, shards)
    session = 0
    for folder in shards:
        numbers: dict[str, int] = {}  # each session of a shard becomes one of the run
        for part in parts(folder):
            _, of_shard, rank, count = part.stem.split("-")
            number = numbers.setdefault(of_shard, session + len(numbers))
            with replacing(out / FOLDER / f"part-{number:03}-{rank}-{count}.parquet") as unfinished:
                shutil.copyfile(part, unfinished)
        session += len(numbers)


def _check(shards: Sequence[Path], records: Sequence[dict[str, Any]]) -> None:
    """Raise an `InputError` unless these are all shards of one run, and done."""
    found: dict[int, Path] = {}
    count = 0
    for folder, record in zip(shards, records, strict=True):
        if not parts(folder):
            raise InputError(f"{folder}: no run of diffguard_pl: there are no {FOLDER}/part-*.parquet")
        shard = record.get("config", {}).get("shard")
        if shard is None:
            raise InputError(f"{folder}: no shard of a run (test --shard I/N); python -m diffguard_pl.report compares whole runs")
        if not record["sessions"][-1].get("ended"):
            raise InputError(f"{folder}: shard {shard} is not done; python -m diffguard_pl.test --resume {folder} goes on with it")
        number, of = parsed_shard(shard)
        if number in found:
            raise InputError(f"{folder}: shard {shard} is in {found[number]} already")
        found[number], count = folder, count or of
        before, now = ({**of_run["config"], "shard": of} for of_run, of in ((records[0], count), (record, of)))
        if why := run.changed(before, now):
            raise InputError(f"{folder} is of another run than {shards[0]}: {why.replace(' when the run began and', ' there,')}")
        for name in {*records[0].get("weights", {}), *record.get("weights", {})}:
            if records[0]["weights"].get(name) != record["weights"].get(name):
                raise InputError(f"{folder} is of another run than {shards[0]}: the weights of the {name} are not the same")
        if header(parts(folder)[0]) != header(parts(shards[0])[0]):
            raise InputError(f"{folder} is of another run than {shards[0]}: its scores are of other names")
    missing = sorted(set(range(count)) - set(found))
    if missing:
        raise InputError(f"of {count} shards these are missing: {', '.join(f'{number}/{count}' for number in missing)}")


def _copy_pictures(out: Path, shards: Sequence[Path]) -> None:
    """Those that one run would have kept, of what the shards have kept."""
    for_count = run.read_record(shards[0])["config"].get("pictures", {}).get("count", 0)
    kept: dict[str, dict[Chosen, Path]] = {}
    for folder in shards:
        frame, described = read(folder)
        scores = frame.set_index(["dataset", "index"])[described.scores[0]].to_dict()
        for path in gallery(folder):
            try:
                found = load(path)
                chosen = chosen_for(found.dataset, found.index, scores[found.dataset, found.index])
            except (OSError, KeyError, ValueError):
                continue  # damaged; the scores are not
            kept.setdefault(found.dataset, {})[chosen] = path
    best = PictureWriter(for_count).best
    for of_set in kept.values():
        for chosen in best(list(of_set)):
            path = of_set[chosen]
            with replacing(out / path.relative_to(path.parents[2])) as unfinished:
                shutil.copyfile(path, unfinished)


if __name__ == "__main__":
    main()
