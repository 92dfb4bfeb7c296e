"""Kept pictures of a run: ``pictures/DATASET/INDEX.png``, the panels of one image side by side.

The panels are the input, the unguided reconstruction (if there was one), the reconstruction under
the label, and the guidance mask (if there was one). The file's metadata names dataset, index and
panels, so a file is readable without its path.
"""

import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image, PngImagePlugin

from ..random_by_index import random_by_index
from ..runs.files import atomic_write

FOLDER = "pictures"
PANELS = ("input", "unguided", "reconstruction", "mask")
NOT_A_PICTURE = (
    EOFError,
    KeyError,
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""Errors with which Pillow and the metadata tell that a file is damaged or something else."""


@dataclass
class KeptPicture:
    """Panels of one image under test.

    Attributes:
        dataset: Name of the image's dataset.
        index: Index of the image in its dataset.
        panels: Square panels of equal size by name, in the order of ``PANELS``.
    """

    dataset: str
    index: int
    panels: dict[str, Image.Image]


@dataclass(frozen=True)
class Candidate:
    """One image that competes for a place among the kept pictures of its dataset.

    Attributes:
        index: Index of the image in its dataset.
        score: Primary score of the image; may be NaN.
        random_key: Number in [0, 1) that orders the random sample; see :func:`random_key`.
    """

    index: int
    score: float
    random_key: float


def candidate_for(dataset: str, index: int, score: float) -> Candidate:
    """Return the candidate for one image, with the random key of its dataset and index."""
    return Candidate(index, score, random_key(dataset, index))


def choose_candidates(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Choose the images of one dataset whose pictures are kept.

    The choice does not depend on the order of the candidates, and the best of two groups are the
    best of their best, so that batches, devices and shards can be taken one after the other.

    Args:
        candidates: Candidates of one dataset.
        count: Number of images of each kind.

    Returns:
        The most and the least mismatched images, and random ones, without duplicates.
    """
    if count == 0:
        return []
    # A NaN has no place in an order, so it is neither most nor least mismatched.
    scored = [candidate for candidate in candidates if not math.isnan(candidate.score)]
    by_score = sorted(scored, key=lambda candidate: (candidate.score, candidate.random_key))
    by_random_key = sorted(candidates, key=lambda candidate: candidate.random_key)
    chosen = [*by_score[:count], *by_score[-count:], *by_random_key[:count]]
    return list(dict.fromkeys(chosen))


def random_key(dataset: str, index: int) -> float:
    """Return a pseudo-random number in [0, 1) that depends on dataset and index alone.

    Images ordered by it form a random sample that is the same for every batch size, device count
    and interruption.
    """
    return random_by_index(dataset, index).random()


def folder_name(dataset: str) -> str:
    """Return a valid file name for a dataset, distinct from that of every other dataset."""
    # A leading dot is replaced too: ".." would leave the folder.
    plain = re.sub(r"[^\w.-]|^\.", "_", dataset)
    if plain == dataset:
        return plain
    # Two names may become equal once their signs are replaced; a hash keeps them apart.
    return f"{plain}-{sha256(dataset.encode()).hexdigest()[:8]}"


def picture_path(run: Path, dataset: str, index: int) -> Path:
    """Return the path of an image's kept picture in a run's folder."""
    return run / FOLDER / folder_name(dataset) / f"{index}.png"


def picture_paths(run: Path) -> list[Path]:
    """Return the sorted paths of all kept pictures of a run."""
    return sorted((run / FOLDER).glob("*/*.png"))


def kept_pictures(run: Path) -> dict[tuple[str, int], Path]:
    """Map (dataset, index) to the path of the kept picture.

    Files that are not kept pictures are left out, and counted on standard error.
    """
    found, foreign = {}, []
    for path in picture_paths(run):
        try:
            with _opened(path) as strip:
                dataset, index, _ = _identity(strip)
                found[dataset, index] = path
        except NOT_A_PICTURE:
            foreign.append(path)
    if foreign:
        print(
            f"{run / FOLDER}: {len(foreign)} files are damaged or not pictures of a run, and are "
            f"left out, such as {foreign[0].relative_to(run / FOLDER)}; remove them",
            file=sys.stderr,
        )
    return found


def write_picture(run: Path, picture: KeptPicture) -> None:
    """Write the panels of an image as one PNG, atomically."""
    # One file an image, for a run may keep thousands: the panels stand side by side.
    panels = list(picture.panels.values())
    side = panels[0].height
    strip = Image.new("RGB", (side * len(panels), side))
    for i, panel in enumerate(panels):
        strip.paste(panel.convert("RGB"), (i * side, 0))

    metadata = PngImagePlugin.PngInfo()
    metadata.add_itxt("dataset", picture.dataset)
    metadata.add_itxt("index", str(picture.index))
    metadata.add_itxt("panels", ",".join(picture.panels))

    with atomic_write(picture_path(run, picture.dataset, picture.index)) as unfinished:
        strip.save(unfinished, format="png", pnginfo=metadata)


def read_picture(path: Path) -> KeptPicture | None:
    """Read the panels of an image; None if the file is damaged or not a kept picture."""
    try:
        with _opened(path) as strip:
            dataset, index, names = _identity(strip)
            strip.load()
            side = strip.height
            panels = {
                name: strip.crop((i * side, 0, (i + 1) * side, side))
                for i, name in enumerate(names)
            }
    except NOT_A_PICTURE:
        return None
    return KeptPicture(dataset, index, panels)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture without decoding it; one with too many pixels raises an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=["PNG"]) as strip:
            yield strip


def _identity(strip: Image.Image) -> tuple[str, int, list[str]]:
    """Return dataset, index and panels in the metadata of a picture.

    Raises:
        KeyError, ValueError: They are missing, or are not those of an image of this size.
    """
    names = strip.info["panels"].split(",")
    # Panels are squares that stand side by side.
    if strip.size != (len(names) * strip.height, strip.height):
        raise ValueError("has other panels")
    if not {"input", "reconstruction"} <= {*names} <= {*PANELS}:
        raise ValueError("has other panels")
    return strip.info["dataset"], int(strip.info["index"]), names
