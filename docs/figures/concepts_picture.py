"""Draw docs/images/way.png of the page on concepts: ``python docs/figures/concepts_picture.py``.

A known digit and a 4, to noise and back: the first test digit and the first held-out 4 of
``load_digits``, not selected. The model is digits_gdm, which diffuses pixels, so every state is an
image.
"""

from pathlib import Path

import torch
from torch import Tensor

import diffguard_pl
from diffguard_pl import DiffGuard
from diffguard_pl.datamodules.digits import CLASSES, digits, held_out
from diffguard_pl.diffusion.ddim import Step, StepCallback
from diffguard_pl.engine import reference
from diffguard_pl.report.pictures import Frame, difference, draw_strips, to_image

FILE = Path(__file__).parents[1] / "images" / "way.png"
FRAMES = 6


def frame(caption: str, image: Tensor) -> Frame:
    return Frame(caption, to_image(image.detach().clamp(0, 1)))


def recorder(model: DiffGuard, noise_levels: Tensor, frames: list[Frame]) -> StepCallback:
    """Return a callback that adds the state after each step, with its noise level, to frames."""

    def record(step: Step) -> None:
        # The guided trajectory is row 0; an unguided copy may follow.
        row = step.batch_index.tolist().index(0)
        noise = noise_levels[step.index[row]]
        image = (model.backbone.decode(step.x[row][None])[0] + 1) / 2
        frames.append(frame(f"noise {noise:.2f}", image))

    return record


def evenly_spaced(frames: list[Frame]) -> list[Frame]:
    """Select as many frames as fit, the last one included."""
    return [frames[round((i + 1) * len(frames) / FRAMES) - 1] for i in range(FRAMES)]


def strips(model: DiffGuard, image: Tensor, name: str) -> dict[str, list[Frame]]:
    """Draw an image's inversion, its reconstruction, and the comparison."""
    inversion: list[Frame] = []
    denoising: list[Frame] = []
    schedule = model.schedule
    watch = {
        "inversion": recorder(model, (1 - schedule.inversion_to).sqrt(), inversion),
        "denoising": recorder(model, (1 - schedule.denoising_to).sqrt(), denoising),
    }
    detection = reference.detect(model, image[None], watch=watch)
    label = CLASSES[detection.labels[0]]
    score_name, scores = next(iter(detection.scores.items()))
    compared_to = detection.unguided[0] if detection.unguided is not None else image
    guided = detection.reconstructions[0]
    comparison = [
        frame("unguided", compared_to),
        frame(f"under {label}", guided),
        Frame("difference", difference(to_image(compared_to), to_image(guided))),
    ]
    return {
        f"{name}: to noise": [frame("input", image), *evenly_spaced(inversion)],
        f"back as a {label}": evenly_spaced(denoising),
        f"{score_name} {float(scores[0]):.3f}": comparison,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    model = diffguard_pl.load("digits_gdm")
    known = digits("test")
    drawn = strips(model, known.images[0], f"a known {CLASSES[known.labels[0]]}")
    drawn |= strips(model, held_out().images[0], "a 4, not known")
    draw_strips(drawn, "To noise, and back under the label", FILE)
