"""Draws `docs/images/way.png`, the picture of docs/concepts.md: `python recipes/concepts_picture.py`.

A known digit and a 4, to noise and back: the first test digit and the first held-out 4 of `load_digits`, not chosen. The model is
digits_gdm, for what it diffuses are pixels, that can be looked at.
"""

from pathlib import Path

import torch
from torch import Tensor

import diffguard_pl
from diffguard_pl.datamodules.digits import CLASSES, digits, held_out
from diffguard_pl.diffusion.ddim import Step
from diffguard_pl.engine import reference
from diffguard_pl.report.pictures import Frame, difference, draw_strips, to_image

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "way.png"
FRAMES = 6


def frame(caption: str, image: Tensor) -> Frame:
    return Frame(caption, to_image(image.detach().clamp(0, 1)))


def chosen(frames: list[Frame]) -> list[Frame]:
    """As many as fit, evenly spaced, the last one among them."""
    return [frames[round((i + 1) * len(frames) / FRAMES) - 1] for i in range(FRAMES)]


def ways(detector: diffguard_pl.DiffGuard, image: Tensor, what: str) -> dict[str, list[Frame]]:
    taken: dict[str, list[Frame]] = {"inversion": [], "denoising": []}

    def keep(way: str):
        def after(step: Step) -> None:
            row = step.rows.tolist().index(
                0
            )  # behind it there may be the reconstruction without guidance
            level = (
                detector.schedule.inversion_to
                if way == "inversion"
                else detector.schedule.denoising_to
            )
            noise = (1 - level[step.index[row]]).sqrt()
            taken[way].append(
                frame(
                    f"noise {noise:.2f}", (detector.backbone.decode(step.x[row][None])[0] + 1) / 2
                )
            )

        return after

    found = reference.detect(detector, image[None], watch={way: keep(way) for way in taken})
    label, score = CLASSES[found.labels[0]], float(next(iter(found.scores.values()))[0])
    known = found.unguided[0] if found.unguided is not None else image
    pair = [to_image(part.detach()) for part in (known, found.reconstructions[0])]
    ends = [
        frame("unguided", known),
        frame(f"under {label}", found.reconstructions[0]),
        Frame("difference", difference(*pair)),
    ]
    return {
        f"{what}: to noise": [frame("input", image), *chosen(taken["inversion"])],
        f"back as a {label}": chosen(taken["denoising"]),
        f"{next(iter(found.scores))} {score:.3f}": ends,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    detector = diffguard_pl.load("digits_gdm")
    known, unknown = digits("test"), held_out()
    strips = ways(detector, known.images[0], f"a known {CLASSES[known.labels[0]]}") | ways(
        detector, unknown.images[0], "a 4, not known"
    )
    draw_strips(strips, "To noise, and back under the label", PICTURE)
