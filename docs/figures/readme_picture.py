"""Draw docs/images/mismatch.png of the README: ``python docs/figures/readme_picture.py``.

The first four held-out 4s and 9s of ``load_digits`` and the first four test digits, not selected.
"""

from pathlib import Path

from torch import Tensor

import diffguard_pl
from diffguard_pl import DiffGuard
from diffguard_pl.datamodules.digits import CLASSES, digits, held_out
from diffguard_pl.report.pictures import Picture, draw_grid, to_image

FILE = Path(__file__).parents[1] / "images" / "mismatch.png"
COUNT = 4


def pictures(model: DiffGuard, images: Tensor) -> list[Picture]:
    """Draw images, their reconstructions, labels and primary scores."""
    detection = model(images)
    scores = detection.scores[model.discrepancies.names[0]]
    drawn = []
    for i, image in enumerate(images):
        caption = f"taken for a {CLASSES[detection.labels[i]]}   {float(scores[i]):.3f}"
        panels = [to_image(image), to_image(detection.reconstructions[i])]
        drawn.append(Picture(panels, caption))
    return drawn


if __name__ == "__main__":
    model = diffguard_pl.load("digits_ldm")
    strips = {
        "4 and 9, not known": pictures(model, held_out().images[:COUNT]),
        "known digits": pictures(model, digits("test").images[:COUNT]),
    }
    draw_grid({"": strips}, "DiffGuard on handwriting", FILE)
