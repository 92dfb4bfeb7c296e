"""Images to begin with, for a detector of digits: the first of each kind in the embedded sets, none of them chosen by its score."""

from pathlib import Path

from PIL import Image

from ..datamodules.base import ImageSet
from ..datamodules.digits import CLASSES, IMAGE_SIZE, digits, held_out, letters, tuning
from ..deploy.detector import Detector

KNOWN, UNKNOWN = (
    "Digits it knows: 0 1 2 3 5 6 7 8",
    "What it has never seen: 4, 9, a letter, a symbol, a photo",
)


def takes_digits(detector: Detector) -> bool:
    """Whether the embedded digits are what it was made for."""
    return detector.model.input_size == IMAGE_SIZE and detector.class_names == [
        str(digit) for digit in CLASSES
    ]


def write_examples(folder: Path) -> dict[str, list[Path]]:
    """Write PNG files into a folder; what each group of them is called -> its files."""
    from sklearn.datasets import load_digits, load_sample_image

    scans, target = digits("test"), load_digits().target
    known = [
        next(i for i, label in enumerate(scans.labels) if CLASSES[label] == digit)
        for digit in (2, 3, 5, 8)
    ]
    others = held_out()
    of = [int(target[int(path.partition("[")[2][:-1])]) for path in others.paths]
    symbols = tuning()
    pictures = {
        "a 4": _picture(others, of.index(4)),
        "a 9": _picture(others, of.index(9)),
        "a letter": _picture(letters(), 0),
        "a symbol": _picture(
            symbols, next(i for i, path in enumerate(symbols.paths) if path.startswith("DejaVu"))
        ),
        "a photo": Image.fromarray(load_sample_image("flower.jpg")).crop((200, 100, 440, 340)),
    }
    return {
        KNOWN: [
            _written(_picture(scans, i), folder / f"a {CLASSES[scans.labels[i]]}.png")
            for i in known
        ],
        UNKNOWN: [_written(picture, folder / f"{name}.png") for name, picture in pictures.items()],
    }


def _picture(images: ImageSet, index: int) -> Image.Image:
    return Image.fromarray((images.images[index] * 255).round().byte().permute(1, 2, 0).numpy())


def _written(picture: Image.Image, file: Path) -> Path:
    picture.save(file)
    return file
