"""Builds the report of a run: tables, plots, pictures and page, from its folder alone."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from .gallery import random_key, read_picture
from .page.run_page import write_run_page
from .paper_comparison import PaperComparison
from .pictures import Picture, draw_grid
from .plots import draw_cascade_curve, draw_costs, draw_plots
from .results import RunResults
from .tables import write_cascade_csv, write_costs_csv, write_metrics_csv

IMAGES_PER_STRIP = 6
"""Images of each kind and dataset in ``pictures.png``."""
LONGEST_NAME = 24
"""Characters of a class name that fit above the panels."""


def build(run: RunResults, paper: PaperComparison | None = None) -> list[Path]:
    """Write ``metrics.csv``, ``plots.png``, ``report.html`` and, if the run has them, more.

    A run with kept pictures also gets ``pictures.png``, one with a cascade ``cascade.csv`` and
    ``cascade.png``, and one with path scores ``costs.csv`` and ``costs.png``.

    Args:
        run: Results of the run.
        paper: Comparison with the paper, for ``metrics.csv`` and the page. Defaults to none.

    Returns:
        Paths of the files in the order in which they were written, ``report.html`` last.

    Raises:
        InputError: A file could not be written.
    """
    folder = run.folder
    note = ", unfinished" if run.unfinished else ""
    title = f"{run.name}: {run.primary_score}{note}"

    written = [folder / "metrics.csv"]
    write_metrics_csv(run.results, folder / "metrics.csv", paper)
    pictures = grid_pictures(run)
    if pictures:
        draw_grid(pictures, title, folder / "pictures.png")
        written.append(folder / "pictures.png")
    if run.cascade_curve and run.budget is not None:
        write_cascade_csv(run.cascade_curve, folder / "cascade.csv")
        cascade_title = f"{run.name}: cascade"
        draw_cascade_curve(run.cascade_curve, cascade_title, run.budget, folder / "cascade.png")
        written += [folder / "cascade.csv", folder / "cascade.png"]
    if run.costs:
        write_costs_csv(run.costs, folder / "costs.csv")
        draw_costs(run.costs, f"{run.name}: scores by cost", folder / "costs.png")
        written += [folder / "costs.csv", folder / "costs.png"]
    draw_plots(run.table, title, folder / "plots.png")
    write_run_page(run, folder / "report.html", paper)
    return [*written, folder / "plots.png", folder / "report.html"]


def grid_pictures(run: RunResults) -> dict[str, dict[str, list[Picture]]]:
    """Choose the pictures of ``pictures.png`` among the kept ones.

    Returns:
        The most mismatched, random and least mismatched images of each dataset by its heading;
        without datasets of which no picture was kept.
    """
    paths = run.pictures
    # The run's callback keeps more pictures than are drawn here, but not those of all images.
    scored = run.scored
    pairs = zip(scored["dataset"], scored["index"], strict=True)
    kept = scored[[pair in paths for pair in pairs]]

    grid = {}
    for dataset in run.header.datasets:
        of_dataset = kept[kept["dataset"] == dataset]
        keys = [random_key(dataset, index) for index in of_dataset["index"]]
        of_dataset = of_dataset.assign(random_key=keys)
        # An image without a primary score is neither the most nor the least mismatched one.
        has_score = of_dataset[run.primary_score].notna()
        by_score = of_dataset[has_score].sort_values([run.primary_score, "random_key"])
        kinds = {
            "most mismatched": by_score[:IMAGES_PER_STRIP],
            "random": of_dataset.sort_values("random_key")[:IMAGES_PER_STRIP],
            "least mismatched": by_score[-IMAGES_PER_STRIP:][::-1],
        }
        strips = {}
        for kind, images in kinds.items():
            pictures = _pictures(run, images, paths)
            if pictures:
                strips[kind] = pictures
        if strips:
            grid[f"{dataset} ({run.group_of(dataset)}), {run.sizes[dataset]} images"] = strips
    return grid


def _pictures(
    run: RunResults, images: pd.DataFrame, paths: Mapping[tuple[str, int], Path]
) -> list[Picture]:
    """Read the kept pictures of images, and caption them; skips damaged files."""
    pictures = []
    for _, image in images.iterrows():
        kept = read_picture(paths[image["dataset"], image["index"]])
        if kept is None:
            continue
        parts = ("input", "unguided", "reconstruction")
        panels = [kept.panels[part] for part in parts if part in kept.panels]
        name = (run.class_name(image["reconstructed_as"]) or "")[:LONGEST_NAME]
        score = _short_number(image[run.primary_score])
        pictures.append(Picture(panels, f"{name}   {score}"))
    return pictures


def _short_number(score: float) -> str:
    if abs(score) >= 100:
        return f"{score:.0f}"
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(score, 3) + 0.0:.3f}"
