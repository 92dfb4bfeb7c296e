"""Draws `docs/images/mismatch.png`, the README's picture: `python recipes/readme_picture.py`.

The first four held-out 4s and 9s of `load_digits`, and the first four test digits beside them: not chosen.
"""

from pathlib import Path

import diffguard_pl
from diffguard_pl.datamodules.digits import CLASSES, digits, held_out
from diffguard_pl.report.pictures import Picture, draw_grid, to_image

COUNT = 4


def strip(detector: diffguard_pl.DiffGuard, images) -> list[Picture]:
    found = detector(images)
    score = found.scores[detector.discrepancies.names[0]]
    pairs = [
        [to_image(image) for image in pair]
        for pair in zip(images, found.reconstructions, strict=True)
    ]
    captions = [
        f"taken for a {CLASSES[label]}   {float(s):.3f}"
        for label, s in zip(found.labels, score, strict=True)
    ]
    return [Picture(pair, caption) for pair, caption in zip(pairs, captions, strict=True)]


if __name__ == "__main__":
    detector = diffguard_pl.load("digits_ldm")
    strips = {
        "4 and 9, not known": strip(detector, held_out().images[:COUNT]),
        "known digits": strip(detector, digits("test").images[:COUNT]),
    }
    draw_grid(
        {"": strips},
        "DiffGuard on handwriting",
        Path(__file__).parent.parent / "docs" / "images" / "mismatch.png",
    )
