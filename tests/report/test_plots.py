"""Plots as PNG files."""

import numpy as np
from PIL import Image

from diffguard_pl.metrics.table import ScoreTable
from diffguard_pl.report.plots import draw_plots
from diffguard_pl.report.style import COLOURS, colour_of, line_style_of


def drawn_colours(path) -> set[tuple[int, ...]]:
    """Return the colours that many pixels of an image have."""
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(colour) for colour, count in zip(colours, counts, strict=True) if count > 20}


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_every_dataset_with_images_is_drawn_in_its_colour(tmp_path):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(60, 2)) - np.repeat([0, 1, 2], 20)[:, None]
    members = np.repeat([0, 1, 3], 20)
    names = ["ind", "$\\frac$", "without images", "_hidden"]
    draw_plots(ScoreTable(["s", "msp"], names, {}, values, members), "$title_$", tmp_path / "p.png")
    drawn = drawn_colours(tmp_path / "p.png")
    assert {rgb(COLOURS[number]) for number in (0, 1, 3)} <= drawn
    assert rgb(COLOURS[2]) not in drawn


def test_datasets_that_share_a_colour_differ_in_their_line_style():
    styles = {(colour_of(number), str(line_style_of(number))) for number in range(32)}
    assert len(styles) == 32
