"""Drawn composites."""

import numpy as np
import torch
from PIL import Image

from diffguard_pl.report.pictures import Frame, difference, draw_decision, draw_strips, to_image


def test_arrays_and_tensors_become_the_same_image():
    image = np.random.default_rng(0).random((3, 5, 7), dtype=np.float32)
    expected = (torch.from_numpy(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    for given in (image, torch.from_numpy(image)):
        assert (np.asarray(to_image(given)) == expected).all()


def test_a_difference_is_drawn_from_black_to_yellow():
    black, white = (Image.new("RGB", (2, 2), (value,) * 3) for value in (0, 255))
    assert max(difference(white, white).getpixel((0, 0))) < 5
    red, green, blue = difference(black, white).getpixel((0, 0))
    assert (red, green) > (240, 240)
    assert blue < 200
    brightness = []
    for value in (0, 60, 120, 180, 240):
        grey = Image.new("RGB", (2, 2), (value,) * 3)
        brightness.append(sum(difference(black, grey).getpixel((0, 0))))
    assert brightness == sorted(brightness)


def test_a_decision_without_a_reconstruction_shows_the_input_alone(tmp_path):
    image = torch.full((3, 8, 8), 0.5)
    draw_decision(image, None, "", tmp_path / "one.png", cell=64)
    draw_decision(image, image, "", tmp_path / "three.png", cell=64)
    one, three = (Image.open(tmp_path / f"{name}.png") for name in ("one", "three"))
    assert three.width - one.width == 2 * (64 + 8)
    assert one.getpixel((16 + 32, 16 + 42 + 32)) == (128, 128, 128)


def test_strips_show_their_frames_in_order(tmp_path):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    frames = [Frame(f"step {i}", Image.new("RGB", (4, 4), c)) for i, c in enumerate(colours)]
    draw_strips({"inversion": frames}, "title", tmp_path / "strips.png", cell=32)
    drawn = np.asarray(Image.open(tmp_path / "strips.png"))
    columns = [np.flatnonzero((drawn == colour).all(axis=2).any(axis=0)) for colour in colours]
    assert [len(found) for found in columns] == [32, 32, 32]
    assert columns[0].max() < columns[1].min() < columns[1].max() < columns[2].min()
