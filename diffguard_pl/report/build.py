"""Everything that people look at, from what a run has on disk."""

from pathlib import Path

import pandas as pd

from .cascade_curve import draw_curve, write_curve
from .gallery import chance, kept_pictures, load
from .page.cards import class_name
from .page.write import write_page
from .pictures import Picture, draw_grid
from .plots import draw_plots
from .results import Results
from .tables import write_csv

SHOWN = 6
"""Images of each kind and set in ``pictures.png``."""


def build(results: Results) -> list[Path]:
    """Write ``metrics.csv``, ``pictures.png`` where pictures were kept, ``cascade.csv`` and ``cascade.png`` of a cascade,
    ``plots.png``, ``report.html``; the paths in that order.

    Raises:
        InputError: a file could not be written.
    """
    folder, title = (
        results.folder,
        f"{results.name}: {results.header.scores[0]}{results.unfinished and ', not finished'}",
    )
    written = [folder / "metrics.csv"]
    write_csv(results.rows, written[0])
    strips = grid_strips(results)
    if strips:
        written.append(folder / "pictures.png")
        draw_grid(strips, title, written[-1])
    if results.curve and results.budget is not None:
        written += [folder / "cascade.csv", folder / "cascade.png"]
        write_curve(results.curve, written[-2])
        draw_curve(results.curve, f"{results.name}: cascade", results.budget, written[-1])
    written += [folder / "plots.png", folder / "report.html"]
    draw_plots(results.table, title, written[-2])
    write_page(results, written[-1])
    return written


def grid_strips(results: Results) -> dict[str, dict[str, list[Picture]]]:
    """For each set the most and the least mismatched and some random images, of those whose pictures were kept."""
    headline, kept = results.header.scores[0], kept_pictures(results.folder)
    scored = results.frame[results.frame["error"].isna()]
    scored = scored[[pair in kept for pair in zip(scored["dataset"], scored["index"], strict=True)]]
    strips = {}
    for dataset in results.header.datasets:
        there = scored[scored["dataset"] == dataset]
        there = there.assign(chance=[chance(dataset, i) for i in there["index"]])
        by_score = there[there[headline].notna()].sort_values(
            [headline, "chance"]
        )  # NaN is neither most nor least
        chosen = {
            "most mismatched": by_score[:SHOWN],
            "random": there.sort_values("chance")[:SHOWN],
            "least mismatched": by_score[-SHOWN:][::-1],
        }
        drawn = {
            name: pictures
            for name, lines in chosen.items()
            if (pictures := _pictures(results, lines, kept))
        }
        if drawn:
            group = results.header.groups.get(dataset, "in-distribution")
            strips[f"{dataset} ({group}), {results.sizes[dataset]} images"] = drawn
    return strips


def _pictures(
    results: Results, lines: pd.DataFrame, kept: dict[tuple[str, int], Path]
) -> list[Picture]:
    pictures = []
    for _, line in lines.iterrows():
        try:
            panels = load(kept[line["dataset"], line["index"]]).panels
        except (OSError, ValueError):
            continue  # damaged; the scores are not
        score = line[results.header.scores[0]]
        name = (class_name(results, line["reconstructed_as"]) or "")[:24]
        caption = (
            f"{name}   {round(score, 3) + 0.0:.3f}" if abs(score) < 100 else f"{name}   {score:.0f}"
        )
        pictures.append(
            Picture(
                [
                    panels[part]
                    for part in ("input", "unguided", "reconstruction")
                    if part in panels
                ],
                caption,
            )
        )
    return pictures
