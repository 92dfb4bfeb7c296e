"""From the bytes of images to their decisions, by the code of ``diffguard-pl score``."""

from collections.abc import Sequence

from PIL.Image import Image
from torch.utils.data import Dataset

from ..datamodules.reading import Prepared, collate, read_image
from ..deploy.decision_log import decision_lines
from ..deploy.detector import Detector
from .batching import Item, Record


class Upload(Dataset):
    """One uploaded image, decoded when its item is requested.

    Args:
        content: Content of the file.
        name: Its name in records.
        upright: Whether to apply EXIF orientation.
        max_megapixels: Largest number of pixels, in millions.
    """

    def __init__(self, content: bytes, name: str, upright: bool, max_megapixels: float):
        self.content, self.name = content, name
        self.upright, self.max_megapixels = upright, max_megapixels

    def __len__(self) -> int:
        return 1

    def path_of(self, index: int) -> str:
        """Return the name of the image."""
        return self.name

    def __getitem__(self, index: int) -> Image:
        return read_image(self.content, self.upright, self.max_megapixels)


def prepared(detector: Detector, content: bytes, name: str, max_megapixels: float) -> Item:
    """Decode an image and prepare it as those of the calibration were.

    Args:
        detector: Detector whose preparation applies.
        content: Content of the file.
        name: Name of the image.
        max_megapixels: Largest number of pixels, in millions, checked before decoding.

    Returns:
        Item with ``path``, and ``image`` [3, H, W] in [0, 1], or ``error`` if it cannot be used.
    """
    preparation = detector.preparation
    upload = Upload(content, name, preparation.upright, max_megapixels)
    return Prepared(upload, preparation.transform, "", in_distribution=False)[0]


def decide(detector: Detector, items: Sequence[Item]) -> list[Record]:
    """Decide on prepared images as one batch.

    Args:
        detector: Calibrated detector.
        items: N items of :func:`prepared`.

    Returns:
        N records, in the same order.
    """
    batch = collate([item | {"index": index} for index, item in enumerate(items)])
    ((_, decisions),) = detector.decide([batch])
    return list(decision_lines(batch, decisions).values())
