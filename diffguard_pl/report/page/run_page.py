"""The page of one run, ``report.html``: one file that opens from disk and loads nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...metrics.detection import threshold_at_tpr
from ...metrics.table import ResultRow
from ...names import AVERAGE, MEAN
from ...runs.files import atomic_write
from ...scores.baselines.names import BASELINES
from ..paper_comparison import PaperComparison
from ..results import RunResults
from ..style import COLOURS, colour_of
from .gallery_cards import GALLERY_BYTES, GalleryCards, gallery_cards
from .plot_data import plot_data
from .record_facts import facts, session_facts
from .rendering import render
from .scales import metric_scales

TEMPLATE = "run_page.html.j2"
NAMED_LEFT_OUT = 50
"""Left-out images that the page names."""
PAGE_BYTES = 14_000_000
"""Size of the page; the gallery gets what the other parts leave of it."""


def write_run_page(run: RunResults, path: Path, paper: PaperComparison | None = None) -> None:
    """Write the page of a run.

    Args:
        run: Results of the run.
        path: Path of the page.
        paper: Comparison with the paper, which gets a section. Defaults to none.

    Raises:
        InputError: The file could not be written.
    """
    data = _data(run)
    context = _context(run, data) | _paper_context(run, paper)
    # The page without a gallery shows how many bytes are left for it.
    empty = render(TEMPLATE, data, context | _gallery_context(GalleryCards([], 0)))
    gallery = gallery_cards(run, min(GALLERY_BYTES, PAGE_BYTES - len(empty.encode())))
    gallery_context = _gallery_context(gallery)
    data |= {"cards": gallery.cards, "classes": gallery_context["classes"]}
    page = render(TEMPLATE, data, context | gallery_context)
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _data(run: RunResults) -> dict[str, Any]:
    """Return the data of the page's script, with an empty gallery."""
    header = run.header
    return plot_data(run) | {
        "scores": header.scores,
        "datasets": header.datasets,
        "colours": [colour_of(number) for number in range(len(header.datasets))],
        "colour_count": len(COLOURS),
        "thresholds": [threshold_at_tpr(run.table.of(0)[:, k]) for k in range(len(header.scores))],
        "msp": header.scores.index("msp") if "msp" in header.scores else None,
        "cards": [],
        "classes": [],
    }


def _context(run: RunResults, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of the template, without those of the gallery."""
    header, folder = run.header, run.folder.resolve()
    left_out = run.frame[run.frame["error"].notna()]
    named = left_out[["dataset", "index", "path", "error"]][:NAMED_LEFT_OUT]
    config = run.record.get("config")
    return {
        "title": folder.parent.name,
        "subtitle": folder.name,
        "unfinished": run.unfinished,
        "primary_score": run.primary_score,
        "baselines": BASELINES,
        "ind": run.ind,
        "facts": facts(run),
        "tiles": _tiles(run),
        "results": run.results,
        "is_full_spectrum": bool(run.table.shifted),
        "scales": metric_scales(run.results),
        "cascade_curve": run.cascade_curve,
        "budget": run.budget,
        "costs": run.costs,
        "dataset_counts": [
            (name, run.group_of(name), run.sizes[name], run.left_out[name])
            for name in header.datasets
        ],
        "left_out": named.to_dict("records"),
        "left_out_count": len(left_out),
        "image_count": sum(run.sizes.values()),
        "scores": header.scores,
        "datasets": header.datasets,
        "plots": data,
        "sample_note": _sample_note(header.datasets, data["scatter"]),
        "sessions": [session_facts(session) for session in run.sessions],
        "settings": yaml.safe_dump(config, sort_keys=False) if config else "",
    }


def _paper_context(run: RunResults, paper: PaperComparison | None) -> dict[str, Any]:
    """Return the variables of the template for the comparison with the paper."""
    rows = paper.rows if paper else []
    results = [*run.results, *(row.result for row in rows)]
    return {
        "paper": rows,
        "paper_notes": paper.notes if paper else [],
        "paper_scales": metric_scales(results),
    }


def _sample_note(datasets: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> str:
    """Return which part of the images the scatter plot shows; empty if it shows all."""
    sampled = []
    for name, sample in zip(datasets, samples, strict=True):
        shown = len(sample["index"])
        if shown < sample["total"]:
            sampled.append(f"{shown:,} of {sample['total']:,} {name}")
    if not sampled:
        return ""
    if len(datasets) > 8:
        largest = max(len(sample["index"]) for sample in samples)
        return f"random sample of up to {largest:,} images per dataset"
    return f"random sample: {', '.join(sampled)}"


def _gallery_context(gallery: GalleryCards) -> dict[str, Any]:
    """Return the variables of the template that describe the gallery."""
    classes = {card["prediction"] for card in gallery.cards if card["prediction"]}
    return {
        "card_count": len(gallery.cards),
        "kept_count": gallery.kept,
        "classes": sorted(classes, key=_numbers_first),
    }


def _tiles(run: RunResults) -> list[Mapping[str, Any]]:
    """Return the content of a tile for each group: results of the primary score and of MSP."""
    tiles: list[Mapping[str, Any]] = []
    results = [result for result in run.results if result.dataset != AVERAGE]
    for group in dict.fromkeys(result.group for result in results):
        of_group = [result for result in results if result.group == group]
        datasets = dict.fromkeys(r.dataset for r in of_group if not r.is_mean)
        # The group's only dataset stands for it; a mean of one has no result of its own.
        is_single = len(datasets) == 1
        shown = next(iter(datasets)) if is_single else MEAN
        by_score: dict[str, ResultRow] = {r.score: r for r in of_group if r.dataset == shown}
        tiles.append(
            {
                "group": group,
                "description": shown if is_single else f"mean of {len(datasets)} datasets",
                "primary": by_score[run.primary_score],
                "msp": by_score.get("msp"),
            }
        )
    return tiles


def _numbers_first(name: str) -> tuple[bool, float, str]:
    """Sort key: numbers in their order, then names."""
    if name.isdecimal():
        return (False, float(name), "")
    return (True, 0.0, name)
