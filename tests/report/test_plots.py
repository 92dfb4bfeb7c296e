"""Plots as PNG files."""

from contextlib import contextmanager
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from diffguard_pl.metrics.detection import DetectionMetrics
from diffguard_pl.metrics.table import ResultRow, ScoreTable
from diffguard_pl.report import plots
from diffguard_pl.report.costs import ScoreCost
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


def test_no_name_of_a_score_is_written_on_another(tmp_path, monkeypatch):
    aurocs = [0.99, 0.991, 0.992, 0.993, 0.99, 0.4]
    nfes = [3, 10, 10, 10, 20, 30]
    names = ["label_pull", "diffpath", "diffpath_1d", "msma", "projection_regret", "eigenscore"]
    costs = [
        ScoreCost(
            name,
            "path score",
            nfe,
            seconds=0.1,
            fitted=False,
            results={"near": ResultRow("near", "mean", name, DetectionMetrics(auroc, 0, 0, 0, 0))},
            best=frozenset({"near"} if name == "label_pull" else ()),
        )
        for name, nfe, auroc in zip(names, nfes, aurocs, strict=True)
    ]
    figures = []

    @contextmanager
    def kept_figure(*_, **__):
        figures.append(Figure(figsize=(10.5, 4.6), layout="constrained"))
        yield figures[0]

    monkeypatch.setattr(plots, "saved_figure", kept_figure)
    plots.draw_costs(costs, "costs", tmp_path / "costs.png")
    figures[0].draw_without_rendering()
    texts = figures[0].axes[0].texts
    assert sorted(text.get_text() for text in texts) == sorted(names)
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
