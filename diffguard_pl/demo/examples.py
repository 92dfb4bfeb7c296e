"""Example images for a detector of digits.

Each is the first of its kind in the embedded datasets; none was chosen by its score.
"""

from pathlib import Path

from PIL import Image

from ..datamodules.base import ImageSet
from ..datamodules.digits import CLASSES, IMAGE_SIZE, digits, held_out, letters, tuning
from ..deploy.detector import Detector

KNOWN = "Digits it knows: 0 1 2 3 5 6 7 8"
UNKNOWN = "What it has never seen: 4, 9, a letter, a symbol, a photo"


def takes_digits(detector: Detector) -> bool:
    """Return whether a detector is one of the embedded digits."""
    names = [str(digit) for digit in CLASSES]
    return detector.model.input_size == IMAGE_SIZE and detector.class_names == names


def write_examples(folder: Path) -> dict[str, list[Path]]:
    """Write the examples as PNG files.

    Returns:
        The files by the heading of their group.
    """
    from sklearn.datasets import load_digits, load_sample_image

    scans = digits("test")
    known = {}
    for digit in (2, 3, 5, 8):
        index = next(i for i, label in enumerate(scans.labels) if CLASSES[label] == digit)
        known[f"a {digit}"] = _image(scans, index)

    # paths of held-out digits end in their index in scikit-learn's dataset: "digits[7]"
    fours_and_nines, target = held_out(), load_digits().target
    held_out_digits = [
        int(target[int(path.partition("[")[2][:-1])]) for path in fours_and_nines.paths
    ]
    symbols = tuning()
    symbol = next(i for i, path in enumerate(symbols.paths) if path.startswith("DejaVu"))
    photo = Image.fromarray(load_sample_image("flower.jpg")).crop((200, 100, 440, 340))
    unknown = {
        "a 4": _image(fours_and_nines, held_out_digits.index(4)),
        "a 9": _image(fours_and_nines, held_out_digits.index(9)),
        "a letter": _image(letters(), 0),
        "a symbol": _image(symbols, symbol),
        "a photo": photo,
    }

    return {KNOWN: _write(known, folder), UNKNOWN: _write(unknown, folder)}


def _image(images: ImageSet, index: int) -> Image.Image:
    pixels = (images.images[index] * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _write(images: dict[str, Image.Image], folder: Path) -> list[Path]:
    files = [folder / f"{name}.png" for name in images]
    for file, image in zip(files, images.values(), strict=True):
        image.save(file)
    return files
