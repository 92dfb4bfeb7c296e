"""The per-image results, on disk."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .detector import Detection


def columns(score_names: Iterable[str]) -> list[str]:
    """Of the file: where the image is from, what the classifier says, where inversion stopped, every score, or why not."""
    return ["dataset", "group", "index", "path", "label", "prediction", "reconstructed_as", "stop_index", *score_names, "error"]


def rows(batch: dict[str, Any], dataset: str, group: str, detection: Detection | None) -> list[dict[str, Any]]:
    """One dict an image, by column; ``detection`` is None where no image of the batch could be read."""
    broken = [{"dataset": dataset, "group": group} | item for item in batch["broken"]]
    if detection is None:
        return broken
    scores = {name: values.tolist() for name, values in detection.scores.items()}
    table = {
        "index": batch["index"].tolist(),
        "path": list(batch["path"]),
        "label": batch["label"].tolist(),
        "prediction": detection.prediction.predicted.tolist(),
        "reconstructed_as": detection.labels.tolist(),
        "stop_index": detection.stop_index.tolist(),
    } | scores
    scored = [
        {"dataset": dataset, "group": group} | dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)
    ]
    return sorted(scored + broken, key=lambda row: row["index"])


def merge(parts: list[Path], path: Path) -> None:
    """Join the files of all ranks into one, set by set and in the order of the images, and remove them."""
    rows: list[dict[str, str]] = []
    for part in parts:
        with part.open(newline="") as file:
            reader = csv.DictReader(file)
            rows += reader
            names = list(reader.fieldnames or [])
    order = {name: i for i, name in enumerate(dict.fromkeys(row["dataset"] for row in rows))}
    merged = ScoreFile(path, names)
    merged.write(sorted(rows, key=lambda row: (order[row["dataset"]], int(row["index"]))))
    merged.close()
    for part in parts:
        part.unlink()


class ScoreFile:
    """A CSV file that is written as results come, flushed after each batch."""

    def __init__(self, path: Path, names: list[str]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, names, lineterminator="\n")
        self._writer.writeheader()

    def write(self, results: list[dict[str, Any]]) -> None:
        self._writer.writerows(results)
        self._file.flush()

    def close(self) -> None:
        self._file.close()
