"""The pictures that a run keeps of its images: ``pictures/SET/INDEX.png``, the panels of one image side by side.

Panels are the input, the reconstruction without guidance where there is one, the reconstruction under the label, and the mask
where guidance acted where there is one. Their names are in the file, so that it explains itself.
"""

import random
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image, PngImagePlugin

from ..runs.files import atomic_write


def kept_pictures(run: Path) -> dict[tuple[str, int], Path]:
    """Where the pictures of each image are, by data set and index; what is no kept picture is passed over."""
    found = {}
    for path in gallery(run):
        try:
            with Image.open(path) as strip:
                found[strip.info["dataset"], int(strip.info["index"])] = path
        except (OSError, KeyError, ValueError):
            continue
    return found


def chance(dataset: str, index: int) -> float:
    """A number in [0, 1) that decides who is among the random ones, the same each time."""
    return random.Random(f"{dataset}/{index}").random()


FOLDER = "pictures"
PANELS = ("input", "unguided", "reconstruction", "mask")


@dataclass
class Kept:
    """An image and what became of it.

    Attributes:
        dataset: it is of.
        index: its index in that set.
        panels: by name, in the order of ``PANELS``, all of one size.
    """

    dataset: str
    index: int
    panels: dict[str, Image.Image]


def folder_name(dataset: str) -> str:
    """The name of a data set as that of a file or folder, and of no other set."""
    plain = re.sub(r"[^\w.-]|^\.", "_", dataset)  # "..", too, would be another folder
    return plain if plain == dataset else f"{plain}-{sha256(dataset.encode()).hexdigest()[:8]}"


def picture_path(run: Path, dataset: str, index: int) -> Path:
    """Where the pictures of an image belong."""
    return run / FOLDER / folder_name(dataset) / f"{index}.png"


def keep(run: Path, kept: Kept) -> None:
    """Write the panels of an image; the file is whole or not there."""
    path = picture_path(run, kept.dataset, kept.index)
    side = next(iter(kept.panels.values())).height
    strip = Image.new("RGB", (side * len(kept.panels), side))
    for i, panel in enumerate(kept.panels.values()):
        strip.paste(panel.convert("RGB"), (i * side, 0))
    words = PngImagePlugin.PngInfo()
    for name, text in (
        ("dataset", kept.dataset),
        ("index", str(kept.index)),
        ("panels", ",".join(kept.panels)),
    ):
        words.add_itxt(name, text)
    with atomic_write(path) as unfinished:
        strip.save(unfinished, format="png", pnginfo=words)


def gallery(run: Path) -> list[Path]:
    """The kept pictures of a run."""
    return sorted((run / FOLDER).glob("*/*.png"))


def load(path: Path) -> Kept:
    """The panels of an image.

    Raises:
        OSError, KeyError: it is no kept picture.
    """
    with Image.open(path) as strip:
        strip.load()
        names = strip.info["panels"].split(",")
        side = strip.height
        panels = {
            name: strip.crop((i * side, 0, (i + 1) * side, side)) for i, name in enumerate(names)
        }
        return Kept(strip.info["dataset"], int(strip.info["index"]), panels)


@dataclass(frozen=True)
class Chosen:
    """An image whose pictures are kept: its index, its headline score, and a number that decides who is among the random ones."""

    index: int
    score: float
    chance: float


def chosen_for(dataset: str, index: int, score: float) -> Chosen:
    """An image, to be compared with others of its set; its chance is always the same."""
    return Chosen(index, score, random.Random(f"{dataset}/{index}").random())
