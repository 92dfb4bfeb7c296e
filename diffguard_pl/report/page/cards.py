"""The gallery of the page: which kept pictures it shows, on which side of the threshold each image is, and how far."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ..gallery import kept_pictures, load
from ..pictures import difference
from ..results import Results
from .embed import as_json

BUDGET = 8_000_000
"""Bytes of all cards in the page: pictures in base64, and text."""
SIDE, SMALL = 224, 64
"""Pixels of a picture in the page, at most; below so many, pixels are shown as squares."""
ORDER = ("input", "reconstruction", "unguided", "difference", "mask")


@dataclass
class Cards:
    """What the gallery shows.

    Attributes:
        cards: an entry for each image, the most confusing one of each set first.
        kept: how many images have pictures in the folder of the run.
    """

    cards: list[dict[str, Any]]
    kept: int


def threshold(ind: np.ndarray) -> float:
    """The highest one that at least 95 % of in-distribution scores [n] reach; NaN of none."""
    ind = np.sort(ind[~np.isnan(ind)])
    count = len(ind)
    rejected = (
        (c for c in range(int(0.05 * count) + 1, -1, -1) if (count - c) / count >= 0.95)
        if count
        else iter(())
    )
    return next((float(ind[c]) for c in rejected), float("nan"))


def confusion(values: np.ndarray, is_ind: np.ndarray) -> np.ndarray:
    """How confusing the scores of images [N] are, from -1 to 1; above 0 for those that the 95 % threshold puts on the wrong side.

    On the wrong side it is the share of the other kind that an image outdoes: of in-distribution images that look no more
    in-distribution than it, if it is an out-of-distribution one, or the reverse. On the right side, that less 1.

    Args:
        values: higher = more in-distribution; NaN has no side, and gives NaN.
        is_ind: which are of in-distribution images.
    """
    cut = threshold(values[is_ind])
    ind, ood = (np.sort(of[~np.isnan(of)]) for of in (values[is_ind], values[~is_ind]))
    if len(ind) == 0 or len(ood) == 0:
        return np.full(len(values), np.nan)
    outdone = np.where(
        is_ind,
        1 - np.searchsorted(ood, values, "left") / len(ood),
        np.searchsorted(ind, values, "right") / len(ind),
    )
    missed = is_ind != (values >= cut)
    # never 0, so that the side can be told
    share = np.where(missed, np.maximum(outdone, 1e-4), np.minimum(outdone - 1, -1e-4))
    return np.where(np.isnan(values), np.nan, share)


def cards(results: Results, budget: int = BUDGET) -> Cards:
    """Cards until the budget is used up: the most confusing of each set in turn, by the headline score, then the next ones."""
    scored = results.frame[results.frame["error"].isna()].reset_index(drop=True)
    paths = kept_pictures(results.folder)
    is_ind = (scored["dataset"] == results.header.datasets[0]).to_numpy()
    confusing = np.stack(
        [confusion(of_score, is_ind) for of_score in results.table.values.T], axis=1
    )
    chosen, left = [], budget
    there = scored[[pair in paths for pair in zip(scored["dataset"], scored["index"], strict=True)]]
    for i in _in_turn(there, confusing[:, 0], results.header.datasets):
        line = scored.loc[i]
        panels = _panels(paths[line["dataset"], line["index"]])
        if panels is None:
            continue
        card = panels | _about(line, results, confusing[i])
        left -= len(as_json(card)) + 1
        if left < 0:
            break
        chosen.append(card)
    return Cards(chosen, len(there))


def class_name(results: Results, label: Any) -> str | None:
    """What a label is called; None for one that is not known."""
    if pd.isna(label) or label < 0:
        return None
    names = results.short_class_names
    return names[int(label)] if int(label) < len(names) else str(int(label))


def _in_turn(there: pd.DataFrame, confusing: np.ndarray, datasets: list[str]) -> Iterator[int]:
    """ResultRow numbers: the most confusing of each set, then the second ones."""
    of_sets = []
    for dataset in datasets:
        rows = there.index[there["dataset"] == dataset].to_numpy()
        of_sets.append(
            rows[np.argsort(-np.nan_to_num(confusing[rows], nan=-2.0), kind="stable")].tolist()
        )
    return (i for i in chain.from_iterable(zip_longest(*of_sets)) if i is not None)


def _about(line: pd.Series, results: Results, confusing: np.ndarray) -> dict[str, Any]:
    return {
        "dataset": line["dataset"],
        "index": int(line["index"]),
        "path": line["path"] or "",
        "label": class_name(results, line["label"]),
        "prediction": class_name(results, line["prediction"]),
        "reconstructed_as": class_name(results, line["reconstructed_as"]),
        "stop_index": None if pd.isna(line["stop_index"]) else int(line["stop_index"]),
        "seconds": line["seconds"],
        "values": [float(line[name]) for name in results.header.scores],
        "confusion": [round(float(value), 4) for value in confusing],
    }


def _panels(path: Path) -> dict[str, Any] | None:
    """Pictures as data URIs by name; None where they cannot be read."""
    try:
        found = load(path).panels
        reference = found["unguided"] if "unguided" in found else found["input"]
        found["difference"] = difference(reference, found["reconstruction"])
    except (OSError, KeyError, ValueError):
        return None
    small = found["input"].width < SMALL
    pictures = {
        name: _data_uri(found[name], lossless=small or name == "mask")
        for name in ORDER
        if name in found
    }
    return {"pictures": pictures, "small": small}


def _data_uri(image: Image.Image, lossless: bool) -> str:
    if image.width > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="webp", lossless=lossless, quality=74, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
