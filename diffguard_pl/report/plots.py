"""Curves and histograms: their numbers, and ``plots.png``."""

from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.table import ScoreTable
from ..runs.files import atomic_write
from .gallery import chance
from .results import Results
from .style import COLOURS, look

CURVE_POINTS = 120_000
"""Of all ROC curves of a page."""
POINTS = 6000
"""Of a scatter plot, over all sets; and 1,500 of each at most."""
LEGEND_COLUMNS = 5


def roc(ind: np.ndarray, ood: np.ndarray, points: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Shares of out-of-distribution and of in-distribution scores accepted, at most ``points`` of each, from (0, 0) to (1, 1)."""
    ind, ood = np.sort(ind[~np.isnan(ind)]), np.sort(ood[~np.isnan(ood)])
    thresholds = np.unique(np.concatenate([ind, ood]))[::-1]
    if len(thresholds) >= points:
        thresholds = thresholds[np.linspace(0, len(thresholds) - 1, points - 1).round().astype(int)]
    accepted = [
        (len(s) - np.searchsorted(s, thresholds, "left")) / max(len(s), 1) for s in (ood, ind)
    ]
    return np.insert(accepted[0], 0, 0.0), np.insert(accepted[1], 0, 0.0)


def curve_points(curves: int) -> int:
    """How many points each of so many curves of a page gets."""
    return min(300, max(20, CURVE_POINTS // curves))


def histograms(
    table: ScoreTable, score: int, bins: int = 50
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Edges [bins + 1] of one score over all sets, and for each set the share of it in each bin."""
    values = [
        of_set[np.isfinite(of_set)]
        for of_set in (table.of(d)[:, score] for d in range(len(table.datasets)))
    ]
    together = np.concatenate(values)
    low, high = (
        np.quantile(together, [0.002, 0.998]) if len(together) else (0.0, 1.0)
    )  # an outlier would squeeze all others
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    return edges, [
        np.histogram(of_set.clip(edges[0], edges[-1]), edges)[0] / max(len(of_set), 1)
        for of_set in values
    ]


def plot_data(results: Results) -> dict[str, Any]:
    """The numbers of the page's plots."""
    table, datasets, scores = results.table, results.header.datasets, results.header.scores
    data: dict[str, Any] = {"roc": {}, "histogram": {}}
    points = curve_points(len(scores) * len(datasets))
    for k, score in enumerate(scores):
        curves = [
            roc(table.of(0)[:, k], table.of(d)[:, k], points) for d in range(1, len(datasets))
        ]
        data["roc"][score] = [
            {"x": x.round(5).tolist(), "y": y.round(5).tolist()} for x, y in curves
        ]
        edges, shares = histograms(table, k)
        data["histogram"][score] = {
            "edges": edges.tolist(),
            "shares": [of_set.round(5).tolist() for of_set in shares],
        }
    return data | {
        "scatter": _scatter(results),
        "stops": _stops(results),
        "seconds": _seconds(results),
    }


def _scatter(results: Results) -> list[dict[str, Any]]:
    """Of each set, indices and values [K][n] of images drawn by chance."""
    scored = results.frame[results.frame["error"].isna()]
    limit = min(1500, POINTS // len(results.header.datasets))
    drawn = []
    for dataset in results.header.datasets:
        of_set = scored[scored["dataset"] == dataset]
        order = np.argsort([chance(dataset, index) for index in of_set["index"]])[:limit]
        chosen = of_set.iloc[np.sort(order)]
        values = [[float(f"{v:.6g}") for v in chosen[name]] for name in results.header.scores]
        drawn.append({"index": chosen["index"].tolist(), "values": values, "of": len(of_set)})
    return drawn


def _stops(results: Results) -> dict[str, Any] | None:
    """Where inversion stopped: steps, and for each set the share of it at each; None where it always stopped at one."""
    stopped = results.frame[["dataset", "stop_index"]].dropna()
    steps = np.unique(stopped["stop_index"]).astype(int)
    if len(steps) < 2:
        return None
    of_sets = [
        stopped.loc[stopped["dataset"] == name, "stop_index"] for name in results.header.datasets
    ]
    return {
        "steps": steps.tolist(),
        "shares": [[float((of == s).mean()) if len(of) else 0.0 for s in steps] for of in of_sets],
    }


def _seconds(results: Results) -> dict[str, Any] | None:
    """Seconds an image; None where they are not known."""
    seconds = results.frame["seconds"].dropna().to_numpy(float)
    seconds = seconds[np.isfinite(seconds)]
    if len(seconds) == 0:
        return None
    edges = np.linspace(seconds.min(), max(np.quantile(seconds, 0.998), seconds.min() + 1e-9), 41)
    shares = np.histogram(seconds.clip(edges[0], edges[-1]), edges)[0] / len(seconds)
    quantiles = dict(
        zip(("median", "p95"), np.quantile(seconds, [0.5, 0.95]).tolist(), strict=True)
    )
    return {
        "edges": edges.tolist(),
        "shares": shares.tolist(),
        "total": float(seconds.sum()),
        **quantiles,
    }


def draw_plots(table: ScoreTable, title: str, path: Path) -> None:
    """ROC curves of the headline score against those of MSP, and its histograms, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"text.parse_math": False}):  # a $ in a name is one
        figure = _drawn(table, title)
        with atomic_write(path) as unfinished:
            figure.savefig(unfinished, dpi=150, format="png")
        pyplot.close(figure)


def _drawn(table: ScoreTable, title: str) -> Any:
    from matplotlib import pyplot

    under = -(-len(table.datasets) // LEGEND_COLUMNS)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(10.5, 4.4 + 0.19 * under), layout="constrained"
    )
    msp = table.scores.index("msp") if "msp" in table.scores[1:] else None
    edges, shares = histograms(table, 0)
    centres = (edges[1:] + edges[:-1]) / 2
    shade = (
        0.35 if len(table.datasets) <= len(COLOURS) else 0.06
    )  # outlines alone are told apart where there are many
    for d in range(len(table.datasets)):
        colour, line = look(d)
        if len(table.of(d)):
            right.fill_between(
                centres, 100 * shares[d], step="mid", color=colour, alpha=shade, linewidth=0
            )
            right.step(
                centres, 100 * shares[d], where="mid", color=colour, linestyle=line, linewidth=1
            )
        if d and len(table.of(d)):
            left.plot(*roc(table.of(0)[:, 0], table.of(d)[:, 0]), color=colour, linestyle=line)
            if msp is not None:
                left.plot(
                    *roc(table.of(0)[:, msp], table.of(d)[:, msp]),
                    color=colour,
                    linewidth=1,
                    linestyle=":",
                )
    left.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
    dotted = "; dotted: MSP" if msp is not None else ""
    left.set(
        xlabel=f"share of out-of-distribution images accepted{dotted}",
        ylabel=f"share of {table.datasets[0]} accepted",
    )
    right.set(
        xlabel=f"{table.scores[0]} (higher = more in-distribution)", ylabel="percent of the set"
    )
    figure.suptitle(title, fontsize=11)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, table)
    return figure


def _legend(figure: Any, table: ScoreTable) -> None:
    """Below both plots, where there is room for any number of sets."""
    from matplotlib.lines import Line2D

    keys, names = [], []
    for d, name in enumerate(table.datasets):
        if len(table.of(d)):
            colour, line = look(d)
            keys.append(Line2D([], [], color=colour, linestyle=line))
            names.append(_cut(name))
    figure.legend(
        keys,
        names,
        loc="outside lower center",
        ncols=LEGEND_COLUMNS,
        frameon=False,
        fontsize=8,
        handlelength=3,
    )


def _cut(name: str) -> str:
    """A name that fits into its column; one that begins with _ would be hidden."""
    shown = name if len(name) <= 30 else f"{name[:29]}…"
    return f" {shown}" if shown.startswith("_") else shown
