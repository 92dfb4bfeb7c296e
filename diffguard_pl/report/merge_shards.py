"""Merging the shards of a run (``test --shard I/N``) into one run folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..runs import record
from ..runs.files import atomic_write
from ..runs.shards import parse_shard
from ..runs.store import SCORES_FOLDER, part_files, part_numbers, read_header, read_scores
from .gallery import Candidate, candidate_for, choose_candidates, picture_paths, read_picture


def merge_shards(out: Path, shards: Sequence[Path]) -> None:
    """Copy scores, pictures and settings of all shards of a run to a new run folder.

    Args:
        out: Folder of the whole run.
        shards: Folders of the shards.

    Raises:
        InputError: A shard is missing or unfinished, or belongs to another run; ``out`` has
            scores.
    """
    if part_files(out):
        raise InputError(
            f"run folder {out}: holds the results of another run; choose another, or remove them"
        )
    records = [record.read_record(folder) for folder in shards]
    _check_complete(shards, records)
    config = records[0]["config"] | {"shard": None}
    record.write_record(out, _merged_record(records, config))
    with atomic_write(out / record.CONFIG_FILE) as unfinished:
        unfinished.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    # Pictures before scores: a run folder with scores has its pictures, too.
    _copy_pictures(out, shards)
    _copy_scores(out, shards)


def _merged_record(records: Sequence[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """Return the record of the whole run, with the sessions of all shards in the order of time."""
    sessions = [
        session | {"shard": of_shard["config"]["shard"]}
        for of_shard in records
        for session in of_shard.get("sessions", [])
    ]
    sessions.sort(key=lambda session: str(session.get("began")))
    merged = records[0] | {"config": config, "sessions": sessions}
    images = [of_shard.get("images", {}) for of_shard in records]
    if all(of_shard.keys() == images[0].keys() for of_shard in images):
        merged["images"] = {name: sum(of_shard[name] for of_shard in images) for name in images[0]}
    return merged


def _copy_scores(out: Path, shards: Sequence[Path]) -> None:
    """Copy all parts of the scores; each session of a shard becomes one of the run."""
    sessions = 0
    for folder in shards:
        numbers: dict[str, int] = {}
        for part in part_files(folder):
            session, rank, count = part_numbers(part)
            number = numbers.setdefault(session, sessions + len(numbers))
            name = f"part-{number:03}-{rank}-{count}.parquet"
            with atomic_write(out / SCORES_FOLDER / name) as unfinished:
                shutil.copyfile(part, unfinished)
        sessions += len(numbers)


def _copy_pictures(out: Path, shards: Sequence[Path]) -> None:
    """Copy the pictures that one run would have kept, of those that the shards have kept."""
    settings = record.read_record(shards[0])["config"].get("pictures") or {}
    candidates: dict[str, dict[Candidate, Path]] = {}
    for folder in shards:
        results, header = read_scores(folder)
        scores = results.set_index(["dataset", "index"])[header.scores[0]].to_dict()
        for path in picture_paths(folder):
            picture = read_picture(path)
            # a damaged picture is no reason to lose the scores
            if picture is None or (picture.dataset, picture.index) not in scores:
                continue
            score = scores[picture.dataset, picture.index]
            candidate = candidate_for(picture.dataset, picture.index, score)
            candidates.setdefault(picture.dataset, {})[candidate] = path
    for of_dataset in candidates.values():
        for candidate in choose_candidates(list(of_dataset), settings.get("count", 0)):
            path = of_dataset[candidate]
            with atomic_write(out / path.relative_to(path.parents[2])) as unfinished:
                shutil.copyfile(path, unfinished)


def _check_complete(shards: Sequence[Path], records: Sequence[dict[str, Any]]) -> None:
    """Raise an `InputError` unless these are all the shards of one run, and finished."""
    found: dict[int, Path] = {}
    for folder, of_shard in zip(shards, records, strict=True):
        number = _check_shard(folder, of_shard)
        if number in found:
            raise InputError(f"{folder}: is the same shard as {found[number]}; leave one out")
        found[number] = folder
        if why := _difference(folder, of_shard, shards[0], records[0]):
            raise InputError(f"{folder}: belongs to another run than {shards[0]}: {why}")
    _, count = parse_shard(records[0]["config"]["shard"])
    missing = [f"{number}/{count}" for number in range(count) if number not in found]
    if missing:
        raise InputError(f"shards {', '.join(missing)} are missing; run them, or add their folders")


def _check_shard(folder: Path, of_shard: dict[str, Any]) -> int:
    """Return the number of a shard, or raise an `InputError` if it is none or unfinished."""
    if not part_files(folder):
        raise InputError(
            f"{folder}: not a diffguard_pl run: {SCORES_FOLDER}/part-*.parquet not found"
        )
    shard = of_shard.get("config", {}).get("shard")
    if not isinstance(shard, str):
        raise InputError(
            f"{folder}: not a shard of a run (test --shard I/N); diffguard-pl report compares runs"
        )
    if not record.last_session(of_shard).get("ended"):
        raise InputError(
            f"{folder}: shard {shard} is unfinished; diffguard-pl test --resume {folder}"
        )
    return parse_shard(shard)[0]


def _difference(
    folder: Path, of_shard: dict[str, Any], first: Path, of_first: dict[str, Any]
) -> str | None:
    """Say in which way a shard belongs to another run than the first one, or return None."""
    # Shards of one run differ in their number alone.
    counts = [parse_shard(one["config"]["shard"])[1] for one in (of_first, of_shard)]
    before, now = (
        one["config"] | {"shard": count}
        for one, count in zip((of_first, of_shard), counts, strict=True)
    )
    if why := record.first_difference(before, now):
        return why.replace(" when the run began and", " there,")
    weights, expected = of_shard.get("weights", {}), of_first.get("weights", {})
    for name in {*expected, *weights}:
        if weights.get(name) != expected.get(name):
            return f"the weights of the {name} differ"
    if read_header(part_files(folder)[0]) != read_header(part_files(first)[0]):
        return "the names of its scores differ"
    return None
