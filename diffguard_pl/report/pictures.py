"""Drawn composites: grids of inputs and reconstructions, single decisions, and strips of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runs.files import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

INK, PAPER, FAINT, RULE = (28, 28, 30), (255, 255, 255), (120, 120, 124), (210, 210, 214)


@dataclass
class Picture:
    """One image under test, for the grid.

    Attributes:
        panels: Input, unguided reconstruction (if any) and reconstruction, in this order.
        caption: Text above the panels, such as the classifier's label and the score.
    """

    panels: list[Image.Image]
    caption: str


@dataclass
class Frame:
    """One step in a strip.

    Attributes:
        caption: Text above the image.
        image: Image at this step.
    """

    caption: str
    image: Image.Image


def to_image(image: Any) -> Image.Image:
    """Convert an array or CPU tensor [3, H, W] in [0, 1] to an 8-bit RGB image."""
    pixels = (np.asarray(image, dtype=np.float32) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def difference(a: Image.Image, b: Image.Image) -> Image.Image:
    """Draw |a - b|, averaged over channels, from black (0) to bright yellow (1)."""
    distance = np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean(axis=-1) / 255
    # matplotlib maps [0, 1) to 256 entries of equal width, and 1 to the last one.
    entries = np.minimum((distance * 256).astype(int), 255)
    return Image.fromarray(_inferno()[entries])


def draw_grid(
    datasets: Mapping[str, Mapping[str, Sequence[Picture]]], title: str, path: Path, cell: int = 72
) -> None:
    """Draw a grid of inputs, reconstructions and their differences.

    Args:
        datasets: Pictures from left to right, by dataset heading and strip name, for example
            ``{"letters (far), 24 images": {"most mismatched": [...]}}``.
        title: First line of the drawing.
        path: Path of the PNG.
        cell: Side of each panel in pixels. Defaults to 72.

    Raises:
        InputError: The file could not be written.
    """
    strips = [strip for strips in datasets.values() for strip in strips.values()]
    columns = max(len(strip) for strip in strips)
    panels = 1 + max(len(picture.panels) for strip in strips for picture in strip)

    # All sizes in pixels.
    gap, margin, label_width = 4, 20, 120
    title_height, heading_height, caption_height = 54, 34, 18
    strip_height = caption_height + cell + 6
    picture_width = panels * (cell + gap) + 14
    width = 2 * margin + label_width + columns * picture_width
    height = 2 * margin + title_height - 4
    height += len(datasets) * heading_height + len(strips) * strip_height

    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    font, bold = _font("DejaVuSans", 12), _font("DejaVuSans-Bold", 14)
    pen.text((margin, margin), title, INK, font=bold)
    if panels == 4:
        contents = "input, unguided and guided reconstruction, and their difference"
    else:
        contents = "input, reconstruction under the label, and their difference"
    explanation = f"panels: {contents}; captions: label and score (higher = more in-distribution)"
    pen.text((margin, margin + 22), explanation, FAINT, font=font)

    y = margin + title_height
    for heading, strips_of_dataset in datasets.items():
        pen.line((margin, y, width - margin, y), RULE)
        pen.text((margin, y + 8), heading, INK, font=bold)
        y += heading_height
        for name, strip in strips_of_dataset.items():
            middle = y + caption_height + cell // 2 - 8
            pen.text((margin, middle), name, FAINT, font=font)
            for i, picture in enumerate(strip):
                x = margin + label_width + i * picture_width
                pen.text((x, y), picture.caption, INK, font=font)
                for panel in [*picture.panels, difference(*picture.panels[-2:])]:
                    canvas.paste(_resized(panel, cell), (x, y + caption_height))
                    x += cell + gap
            y += strip_height
    _save(canvas, path)


def draw_decision(
    image: Any, reconstruction: Any | None, caption: str, path: Path, cell: int = 224
) -> None:
    """Draw an image, its reconstruction and their difference.

    Args:
        image: Array or CPU tensor [3, H, W] in [0, 1].
        reconstruction: Array or CPU tensor [3, H, W] in [0, 1]; None if the image was not
            reconstructed.
        caption: Text above the panels.
        path: Path of the PNG.
        cell: Minimum side of each panel in pixels. Defaults to 224.

    Raises:
        InputError: The file could not be written.
    """
    panels = {"input": to_image(image)}
    if reconstruction is not None:
        panels["reconstruction"] = to_image(reconstruction)
        panels["difference"] = difference(panels["input"], panels["reconstruction"])

    cell, gap, margin = max(cell, image.shape[-1]), 8, 16
    font, bold = _font("DejaVuSans", 12), _font("DejaVuSans-Bold", 13)
    width = max(len(panels) * (cell + gap) - gap, int(bold.getlength(caption)))
    canvas = Image.new("RGB", (2 * margin + width, 2 * margin + cell + 44), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, margin), caption, INK, font=bold)
    for i, (name, panel) in enumerate(panels.items()):
        x = margin + i * (cell + gap)
        pen.text((x, margin + 22), name, FAINT, font=font)
        canvas.paste(_resized(panel, cell), (x, margin + 42))
    _save(canvas, path)


def draw_strips(
    strips: Mapping[str, Sequence[Frame]], title: str, path: Path, cell: int = 96
) -> None:
    """Draw strips of frames, one below the other.

    Args:
        strips: Frames from left to right by the name of their strip.
        title: First line of the drawing.
        path: Path of the PNG.
        cell: Side of each frame in pixels. Defaults to 96.

    Raises:
        InputError: The file could not be written.
    """
    gap, margin, label_width = 6, 20, 170
    title_height, caption_height = 34, 18
    strip_height = caption_height + cell + 12
    columns = max(len(frames) for frames in strips.values())
    width = 2 * margin + label_width + columns * (cell + gap)
    height = 2 * margin + title_height - 4 + len(strips) * strip_height

    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    font, bold = _font("DejaVuSans", 12), _font("DejaVuSans-Bold", 14)
    pen.text((margin, margin), title, INK, font=bold)
    y = margin + title_height
    for name, frames in strips.items():
        pen.text((margin, y + caption_height + cell // 2 - 8), name, FAINT, font=font)
        for i, frame in enumerate(frames):
            x = margin + label_width + i * (cell + gap)
            pen.text((x, y), frame.caption, INK, font=font)
            canvas.paste(_resized(frame.image, cell), (x, y + caption_height))
        y += strip_height
    _save(canvas, path)


def _save(canvas: Image.Image, path: Path) -> None:
    with atomic_write(path) as unfinished:
        canvas.save(unfinished, format="png")


def _resized(image: Image.Image, side: int) -> Image.Image:
    """Resize to a square: enlarged pixels stay sharp squares, shrunk ones are averaged."""
    enlarges = image.width < side
    method = Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX
    return image.resize((side, side), method)


@cache
def _inferno() -> NDArray[np.uint8]:
    """Return matplotlib's colour map "inferno", uint8 [256, 3]."""
    import matplotlib

    colours = matplotlib.colormaps["inferno"](np.arange(256))
    return (colours[:, :3] * 255).astype(np.uint8)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return one of the fonts that matplotlib ships."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / f"{name}.ttf"), size)
