"""Random choices that depend on the image alone, not on the run, the batch or the device."""

import random


def random_by_index(dataset: str, index: int) -> random.Random:
    """Return the random number generator of an image, the same each time.

    Args:
        dataset: Name of its dataset.
        index: Index of the image in that dataset.
    """
    return random.Random(f"{dataset}/{index}")
