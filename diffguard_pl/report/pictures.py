"""Pictures: the grid of input, reconstruction and difference of chosen images, set by set; strips of an image, step by step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runs.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

INK, PAPER, FAINT = (28, 28, 30), (255, 255, 255), (120, 120, 124)


@dataclass
class Picture:
    """One image and what became of it.

    Attributes:
        images: input, the unguided reconstruction if there is one, reconstruction.
        caption: the classifier's label and the score.
    """

    images: list[Image.Image]
    caption: str


def draw_grid(
    sets: Mapping[str, Mapping[str, Sequence[Picture]]], title: str, path: Path, cell: int = 72
) -> None:
    """Draw and save the grid.

    Args:
        sets: heading of each data set -> name of each strip (such as "most mismatched") -> its pictures, left to right.
        title: in the first line.
        path: of the PNG.
        cell: side of each picture, in pixels of the grid.
    """
    strips = [strip for strips in sets.values() for strip in strips.values()]
    columns = max(len(strip) for strip in strips)
    parts = max(len(picture.images) for strip in strips for picture in strip) + 1
    gap, margin, label = 4, 20, 120
    tile = parts * (cell + gap) + 14
    font, bold = _font("DejaVuSans", 12), _font("DejaVuSans-Bold", 14)
    row = cell + 24
    heights = [34 + row * len(strips) for strips in sets.values()]
    width, height = margin * 2 + label + columns * tile, margin * 2 + 50 + sum(heights)
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, margin), title, INK, font=bold)
    kinds = (
        "input, reconstruction without guidance, reconstruction under the label, difference of the two"
        if parts == 4
        else ("input, reconstruction under the label, difference")
    )
    pen.text(
        (margin, margin + 22),
        f"each: {kinds}; above it the classifier's label and the score (higher = more in-distribution)",
        FAINT,
        font=font,
    )
    y = margin + 54
    for heading, strips_of_set in sets.items():
        pen.line((margin, y, width - margin, y), (210, 210, 214))
        pen.text((margin, y + 8), heading, INK, font=bold)
        y += 34
        for name, strip in strips_of_set.items():
            pen.text((margin, y + 18 + cell // 2 - 8), name, FAINT, font=font)
            for i, picture in enumerate(strip):
                x = margin + label + i * tile
                pen.text((x, y), picture.caption, INK, font=font)
                for image in [*picture.images, difference(*picture.images[-2:])]:
                    canvas.paste(_fit(image, cell), (x, y + 18))
                    x += cell + gap
            y += row
    with atomic_write(path) as unfinished:
        canvas.save(unfinished, format="png")


def draw_decision(
    image: "Tensor", reconstruction: "Tensor | None", caption: str, path: Path, cell: int = 224
) -> None:
    """Draw and save an image, what it came back as, and their difference.

    Args:
        image: [3, H, W] in [0, 1].
        reconstruction: [3, H, W] in [0, 1]; None: the image was not reconstructed.
        caption: above them.
        path: of the PNG.
        cell: side of each, in pixels of the drawing, at least.
    """
    panels = {"input": _to_image(to_uint8(image))}
    if reconstruction is not None:
        panels["reconstruction"] = _to_image(to_uint8(reconstruction))
        panels["difference"] = difference(*panels.values())
    cell, gap, margin = max(cell, image.shape[-1]), 8, 16
    font, bold = _font("DejaVuSans", 12), _font("DejaVuSans-Bold", 13)
    width = max(len(panels) * (cell + gap) - gap, int(bold.getlength(caption)))
    canvas = Image.new("RGB", (2 * margin + width, 2 * margin + cell + 44), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, margin), caption, INK, font=bold)
    for i, (name, panel) in enumerate(panels.items()):
        pen.text((margin + i * (cell + gap), margin + 22), name, FAINT, font=font)
        canvas.paste(_fit(panel, cell), (margin + i * (cell + gap), margin + 42))
    with atomic_write(path) as unfinished:
        canvas.save(unfinished, format="png")


@dataclass
class Frame:
    """A picture in a strip: uint8 [3, H, W], and what stands above it."""

    caption: str
    image: "Tensor"


def draw_strips(
    strips: Mapping[str, Sequence[Frame]], title: str, path: Path, cell: int = 96
) -> None:
    """Draw and save strips of frames, one below the other.

    Args:
        strips: name of each -> its frames, left to right.
        title: in the first line.
        path: of the PNG.
        cell: side of each frame, in pixels of the drawing.
    """
    gap, margin, label = 6, 20, 170
    font, bold = _font("DejaVuSans", 12), _font("DejaVuSans-Bold", 14)
    columns = max(len(frames) for frames in strips.values())
    canvas = Image.new(
        "RGB",
        (margin * 2 + label + columns * (cell + gap), margin * 2 + 30 + len(strips) * (cell + 30)),
        PAPER,
    )
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, margin), title, INK, font=bold)
    y = margin + 34
    for name, frames in strips.items():
        pen.text((margin, y + 18 + cell // 2 - 8), name, FAINT, font=font)
        for k, frame in enumerate(frames):
            x = margin + label + k * (cell + gap)
            pen.text((x, y), frame.caption, INK, font=font)
            canvas.paste(_fit(_to_image(frame.image), cell), (x, y + 18))
        y += cell + 30
    with atomic_write(path) as unfinished:
        canvas.save(unfinished, format="png")


def _fit(image: Image.Image, cell: int) -> Image.Image:
    return image.resize(
        (cell, cell), Image.Resampling.NEAREST if image.width < cell else Image.Resampling.BOX
    )


def _to_image(image: "Tensor") -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def difference(a: Image.Image, b: Image.Image) -> Image.Image:
    """|a - b|, mean over channels, black (0) to bright yellow (1)."""
    share = np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean(axis=-1) / 255
    return Image.fromarray((matplotlib.colormaps["inferno"](share)[..., :3] * 255).astype(np.uint8))


def to_uint8(images: "Tensor") -> "Tensor":
    """[N, 3, H, W] in [0, 1] -> uint8 on the CPU."""
    return (images * 255).round().byte().cpu()


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size
    )
