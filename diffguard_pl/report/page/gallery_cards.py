"""Cards of the page's gallery: kept pictures and scores of the most confusing images.

The text of the section is in run_page.html.j2.
"""

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

from ...metrics.detection import threshold_at_tpr
from ..gallery import read_picture
from ..pictures import difference
from ..results import RunResults
from .rendering import to_json

GALLERY_BYTES = 8_000_000
"""Bytes of all cards of a page: pictures in base64, and text."""
LARGEST_SIDE, SMALL_SIDE = 224, 64
"""Pixels of a panel in the page, at most; panels smaller than the second are shown pixelated."""
PANEL_ORDER = ("input", "reconstruction", "unguided", "difference", "mask")
LEAST_CONFUSION = 1e-4


@dataclass
class GalleryCards:
    """Content of the gallery.

    Attributes:
        cards: One entry per image shown, as JSON data.
        kept: Number of images whose pictures the run kept.
    """

    cards: list[dict[str, Any]]
    kept: int


def confusion(values: np.ndarray, is_ind: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Compute how confusing images are under one score.

    An image on the wrong side of the threshold at 95 % TPR has a positive confusion: the fraction
    of images of the other kind that it outdoes. For an out-of-distribution image these are the
    in-distribution images that score no higher than it does, for an in-distribution image the
    out-of-distribution images that score no lower. On the right side, confusion is that fraction
    minus 1.

    Args:
        values: Scores [N], higher = more in-distribution.
        is_ind: Bool [N], whether each image is in-distribution.
        threshold: Lowest score that is accepted. Defaults to that at 95 % TPR.

    Returns:
        Confusion [N] in [-1, 1], never 0; NaN where the score is NaN.
    """
    # Without images of both kinds no image can be confused with the other kind.
    ind, ood = values[is_ind], values[~is_ind]
    ind, ood = np.sort(ind[~np.isnan(ind)]), np.sort(ood[~np.isnan(ood)])
    if len(ind) == 0 or len(ood) == 0:
        return np.full(len(values), np.nan)

    # Fractions of the other kind that each image outdoes, ties included.
    outdone_ood = 1 - np.searchsorted(ood, values, "left") / len(ood)
    outdone_ind = np.searchsorted(ind, values, "right") / len(ind)
    outdone = np.where(is_ind, outdone_ood, outdone_ind)

    # The sign tells the side, so an image that outdoes none (or all) must not get 0.
    is_accepted = values >= (threshold_at_tpr(ind) if threshold is None else threshold)
    wrong_side = np.maximum(outdone, LEAST_CONFUSION)
    right_side = np.minimum(outdone - 1, -LEAST_CONFUSION)
    found = np.where(is_accepted != is_ind, wrong_side, right_side)
    return np.where(np.isnan(values), np.nan, found)


def gallery_cards(run: RunResults, limit: int = GALLERY_BYTES) -> GalleryCards:
    """Choose images for the gallery: the most confusing of each dataset in turn, then the next.

    Args:
        run: Run with kept pictures.
        limit: Maximum size of all cards in bytes. Defaults to 8 MB.
    """
    # Lines of `scored` and of the score table are the same images in the same order.
    scored = run.scored.reset_index(drop=True)
    # Covariate-shifted images should be accepted, too, at the threshold of the others.
    table = run.table
    is_ind = ~np.isin(table.members, table.ood)
    of_scores = []
    for k, values in enumerate(table.values.T):
        of_scores.append(confusion(values, is_ind, threshold_at_tpr(table.of(0)[:, k])))
    confusions = np.stack(of_scores, axis=1)

    paths = run.pictures
    pairs = zip(scored["dataset"], scored["index"], strict=True)
    kept = scored[[pair in paths for pair in pairs]]

    # Cards differ in size with the content of their pictures, so add them until the limit.
    cards: list[dict[str, Any]] = []
    size = 0
    for i in _in_turn(kept, confusions[:, 0], run.header.datasets):
        image = scored.loc[i]
        panels = _panels(paths[image["dataset"], image["index"]])
        if panels is None:
            continue
        card = panels | _facts(image, run, confusions[i])
        size += len(to_json(card)) + 1
        if size > limit:
            break
        cards.append(card)
    return GalleryCards(cards, len(kept))


def _in_turn(kept: pd.DataFrame, confusions: np.ndarray, datasets: list[str]) -> Iterator[int]:
    """Yield line numbers: the most confusing image of each dataset, then the second ones, ...

    Args:
        kept: Lines of the images to order.
        confusions: Confusion [N] of all scored images; NaN comes last.
        datasets: Names of the datasets.
    """
    # Queue the images of each dataset, the most confusing by the primary score first.
    by_dataset = []
    for dataset in datasets:
        lines = kept.index[kept["dataset"] == dataset].to_numpy()
        order = np.argsort(-np.nan_to_num(confusions[lines], nan=-2.0), kind="stable")
        by_dataset.append(lines[order].tolist())
    # Take one of each queue in turn; a queue that is empty already yields None.
    for line in chain.from_iterable(zip_longest(*by_dataset)):
        if line is not None:
            yield line


def _facts(image: pd.Series, run: RunResults, confusions: np.ndarray) -> dict[str, Any]:
    """Return the text of a card: identity, classes, scores [K] and confusions [K] of an image."""
    stop_index = image["stop_index"]
    return {
        "dataset": image["dataset"],
        "index": int(image["index"]),
        "path": image["path"] or "",
        "label": run.class_name(image["label"]),
        "prediction": run.class_name(image["prediction"]),
        "reconstructed_as": run.class_name(image["reconstructed_as"]),
        "stop_index": None if pd.isna(stop_index) else int(stop_index),
        "seconds": image["seconds"],
        "values": [float(image[name]) for name in run.header.scores],
        "confusion": [round(float(value), 4) for value in confusions],
    }


def _panels(path: Path) -> dict[str, Any] | None:
    """Return the panels of a kept picture as data URIs; None if it cannot be read."""
    kept = read_picture(path)
    if kept is None:
        return None
    panels = kept.panels
    reference = panels["unguided"] if "unguided" in panels else panels["input"]
    panels["difference"] = difference(reference, panels["reconstruction"])
    # WebP's lossy compression blurs the edges of small pictures and of masks.
    is_small = panels["input"].width < SMALL_SIDE
    pictures = {}
    for name in PANEL_ORDER:
        if name in panels:
            pictures[name] = _data_uri(panels[name], lossless=is_small or name == "mask")
    return {"pictures": pictures, "small": is_small}


def _data_uri(image: Image.Image, lossless: bool) -> str:
    if image.width > LARGEST_SIDE:
        image = image.resize((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="webp", lossless=lossless, quality=74, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
