"""Images that the embedded benchmarks make themselves: rendered characters, crops of photographs.

All are grey, uint8, white on black, and the same wherever they are made.
"""

from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = "ACDEFGHJKLMNPRTUVWXYabdefhkmnprtvwxy"
"""Letters that do not look like a digit, unlike O, I, S, Z, B, Q, l, o, s, g, q."""
SYMBOLS = "#&@%?!+*=$<>~^ΓΔΘΛΞΠΣΦΨΩαβγδλπφω"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
)


def characters(
    text: str, size: int, slants: tuple[float, ...] = (0.0,)
) -> tuple[np.ndarray, list[str]]:
    """Render every character in six faces of matplotlib's DejaVu fonts.

    Args:
        text: The characters.
        size: Height in pixels, which every glyph fills; a wider one is narrowed to this width.
        slants: Shear of each glyph: 0 for upright, 0.25 for slanted.

    Returns:
        Images [N, size, size], and their names.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images, names = [], []
    for face in FONTS:
        font = ImageFont.truetype(str(folder / f"{face}.ttf"), 64)
        for character, slant in product(text, slants):
            images.append(np.asarray(_bitmap(character, font, slant, size)))
            names.append(f"{face}/{character}" + ("/slanted" if slant else ""))
    return np.stack(images), names


def _bitmap(character: str, font: ImageFont.FreeTypeFont, slant: float, size: int) -> Image.Image:
    """Return a character that fills a square bitmap from top to bottom."""
    canvas = Image.new("L", (160, 128))
    ImageDraw.Draw(canvas).text((48, 20), character, fill=255, font=font)
    # shear about the middle of the canvas
    shear = (1, slant, -64 * slant, 0, 1, 0)
    canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
    glyph = canvas.crop(canvas.getbbox())
    width = min(size, max(size // 8, round(size * glyph.width / glyph.height)))
    bitmap = Image.new("L", (size, size))
    glyph = glyph.resize((width, size), Image.Resampling.BILINEAR)
    bitmap.paste(glyph, ((size - width) // 2, 0))
    return bitmap


def photo_crops(count: int, size: int) -> tuple[np.ndarray, list[str]]:
    """Crop scikit-learn's ``china.jpg`` and ``flower.jpg``, 48 to 240 px wide, at random.

    Args:
        count: Number of crops.
        size: Height and width to which each is reduced, by the mean of the pixels.

    Returns:
        Images [N, size, size], and their names.
    """
    from sklearn.datasets import load_sample_images

    sample = load_sample_images()
    photographs = [Image.fromarray(picture).convert("L") for picture in sample.images]
    generator = np.random.RandomState(100)
    crops, names = [], []
    for i in range(count):
        picture, name = photographs[i % 2], Path(sample.filenames[i % 2]).name
        side = generator.randint(48, 241)
        x, y = (
            generator.randint(0, picture.width - side + 1),
            generator.randint(0, picture.height - side + 1),
        )
        box = (x, y, x + side, y + side)
        crops.append(np.asarray(picture.resize((size, size), Image.Resampling.BOX, box=box)))
        names.append(f"{name}[{x}:{x + side},{y}:{y + side}]")
    return np.stack(crops), names
