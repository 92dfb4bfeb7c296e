"""Folders of runs with made-up scores, which reports are built from, and what a page holds."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffguard_pl.report.gallery import KeptPicture, write_picture
from diffguard_pl.runs.store import Header, PartWriter, read_scores
from diffguard_pl.scores.combination import Combination

GROUPS = {"letters": "near", "maps <b>&": "near", "photos": "far"}
DATASETS = ["digits", *GROUPS]
SHIFT = {"digits": 0.0, "letters": 0.8, "maps <b>&": 1.5, "photos": 3.0}
HOSTILE_PATH = "a folder/</script><script>document.title='broken in'</script>.png"
CLASS_NAMES = ["zero", "one, the first", "two", "three", "four", "five", "six", "seven", "eight"]
PANELS = ("input", "unguided", "reconstruction", "mask")
RECORD: dict[str, Any] = {
    "class_names": [*CLASS_NAMES, "nine"],
    "config": {"model": {"steps": 50}, "data": {"note": "</script>"}},
    "sessions": [
        {
            "began": "2026-11-23T20:30:00+00:00",
            "ended": "2026-11-23T20:40:00+00:00",
            "command": ["python", "-m", "diffguard_pl.test", "--config", "a b.yaml"],
            "machine": {"host": "node1", "cpus": 2, "gpus": []},
            "throughput": {
                "images_per_second": 3.5,
                "nfe_per_second": 700,
                "stages": {"inversion": 2.0, "other": 1.0},
            },
            "versions": {"torch": "2.11.0"},
        }
    ],
}


def make_run(
    folder: Path,
    *,
    count: int = 60,
    seed: int = 0,
    primary_score: str = "dists",
    better: float = 0.0,
    datasets: list[str] = DATASETS,
    pictures: int = 12,
    side: int = 16,
    combination: Combination | None = None,
) -> Path:
    """Write the folder of a run with MSP and a primary score that correlates with it.

    MSP is the same for equal seeds. Image 3 of ``photos`` is broken, and image 4 of ``photos`` has
    a path that would break out of a careless page.

    Args:
        folder: Folder of the run.
        count: Number of images per dataset.
        seed: Seed of scores and pictures.
        primary_score: Name of the primary score.
        better: Amount by which the primary score of out-of-distribution images is lowered.
        datasets: Names of the datasets, in-distribution first.
        pictures: Number of images per dataset with kept pictures.
        side: Side of the panels in pixels.
        combination: Combined scores of the run.
    """
    generator = np.random.default_rng(seed)
    settings = combination.to_settings() if combination else None
    groups = {name: GROUPS.get(name, name) for name in datasets[1:]}
    header = Header([primary_score, "msp"], datasets, groups, [], settings)
    writer = PartWriter(folder, header, "0-0")
    for name in datasets:
        is_ood = name not in (datasets[0], "calibration")
        msp = generator.normal(-SHIFT.get(name, 0.0), size=count).round(1)
        primary = msp + generator.normal(scale=0.3, size=count) - better * is_ood
        for i in range(count):
            image = {
                "dataset": name,
                "group": groups.get(name, "ind"),
                "index": i,
                "path": HOSTILE_PATH if name == "photos" and i in (3, 4) else f"{name}/{i}.png",
                "label": i % 10 if name == datasets[0] else -1,
            }
            if name == "photos" and i == 3:
                writer.add([image | {"error": "cannot identify image file <x>"}])
                continue
            found = {
                "prediction": i % 7,
                "reconstructed_as": i % 7,
                "stop_index": int(generator.integers(10, 30)),
                "seconds": 0.1,
                primary_score: float(primary[i]),
                "msp": float(msp[i]),
            }
            writer.add([image | found])
            if i < pictures:
                shape = (len(PANELS), side, side, 3)
                pixels = generator.integers(0, 256, shape, dtype=np.uint8)
                panels = dict(zip(PANELS, map(Image.fromarray, pixels), strict=True))
                write_picture(folder, KeptPicture(name, i, panels))
        writer.flush()
    (folder / "run.json").write_text(json.dumps(RECORD))
    return folder


def make_plain_run(
    folder: Path,
    groups: dict[str, str],
    *,
    count: int = 12,
    scores: tuple[str, ...] = ("dists",),
    path: str = "",
    pictures: int = 0,
    ind: str = "ind",
) -> Path:
    """Write the folder of a run of any datasets, without a record.

    The first two images of a dataset called ``nan`` have NaN scores.
    """
    generator = np.random.default_rng(0)
    header = Header(list(scores), [ind, *groups], groups, [])
    writer = PartWriter(folder, header, "0-0")
    for number, name in enumerate(header.datasets):
        values = generator.normal(-number / 2, size=(count, len(scores))).round(4)
        if name == "nan":
            values[:2] = np.nan
        for i in range(count):
            image = {
                "dataset": name,
                "group": groups.get(name, "ind"),
                "index": i,
                "path": f"{path}{i}.png",
                "label": i % 3 if number == 0 or groups[name] == "csid" else -1,
                "prediction": 0 if groups.get(name) == "csid" else i % 3,
                "reconstructed_as": i % 3,
                "seconds": 0.1,
            }
            writer.add([image | dict(zip(scores, values[i].tolist(), strict=True))])
            if i < pictures:
                panel = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                panels = {"input": panel, "reconstruction": panel}
                write_picture(folder, KeptPicture(name, i, panels))
    writer.flush()
    return folder


def change_record(run: Path, **entries: Any) -> None:
    """Replace entries of ``run.json``; None removes an entry."""
    path = run / "run.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record |= entries
    path.write_text(
        json.dumps({name: value for name, value in record.items() if value is not None})
    )


def change_scores(run: Path, change) -> None:
    """Replace the scores of a run by what a function makes of their frame."""
    frame, header = read_scores(run)
    for part in (run / "scores").iterdir():
        part.unlink()
    frame = change(frame).astype(object)
    writer = PartWriter(run, header, "0-0")
    writer.add(frame.where(frame.notna(), None).to_dict("records"))
    writer.flush()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file, by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def page_data(page: Path) -> dict[str, Any]:
    """Return the data that a page's script draws."""
    element = r'<script id="data" type="application/json">(.*?)</script>'
    return json.loads(re.search(element, page.read_text(), re.S)[1])


def card_images(page: Path) -> set[tuple[str, int]]:
    """Return dataset and index of the images in a page's gallery."""
    return {(card["dataset"], card["index"]) for card in page_data(page)["cards"]}
