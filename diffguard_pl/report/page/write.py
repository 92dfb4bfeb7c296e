"""``report.html`` and ``comparison.html``: one file each, that opens from disk and asks for nothing else."""

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...metrics.bootstrap import METRIC_NAMES
from ...metrics.table import Interval, ResultRow
from ...runs.files import atomic_write
from ...scores.baselines.names import BASELINES
from ..plots import curve_points, plot_data, roc
from ..results import Results
from ..style import COLOURS
from ..tables import Compared, letter
from .cards import BUDGET, Cards, cards, threshold
from .embed import as_json

HERE = Path(__file__).parent
REASONS = 50
"""Left-out images that the page names."""
PAGE_BYTES = 14_000_000
"""Of the page of a run; what other parts leave of it is for the gallery."""


def write_page(results: Results, path: Path) -> None:
    """The page of one run.

    Raises:
        InputError: it could not be written.
    """
    data, context = _data(results), _context(results)
    bare = _rendered("page.html.j2", data, context | _gallery(results, Cards([], 0), data))
    shown = cards(results, min(BUDGET, PAGE_BYTES - len(bare.encode())))
    gallery = _gallery(results, shown, data)
    _write(
        _rendered(
            "page.html.j2",
            data | {"cards": shown.cards, "classes": gallery["classes"]},
            context | gallery,
        ),
        path,
    )


def _data(results: Results) -> dict[str, Any]:
    """What the scripts of a run's page draw, but for the gallery."""
    header = results.header
    return plot_data(results) | {
        "scores": header.scores,
        "datasets": header.datasets,
        "colours": [COLOURS[d % len(COLOURS)] for d in range(len(header.datasets))],
        "shades": len(COLOURS),
        "thresholds": [threshold(results.table.of(0)[:, k]) for k in range(len(header.scores))],
        "msp": header.scores.index("msp") if "msp" in header.scores else None,
        "cards": [],
        "classes": [],
        "cascade": _cascade(results),
    }


def _cascade(results: Results) -> dict[str, Any] | None:
    """The curve of the cascade over the share of images that is diffused; None where there is none."""
    if not results.curve:
        return None
    sets = results.header.datasets[1:]
    rows = [{row.dataset: row for row in point.metrics} for point in results.curve]
    return {
        "sent": [round(point.sent, 5) for point in results.curve],
        "own": next(i for i, point in enumerate(results.curve) if point.budget == results.budget),
        "budgets": [point.budget for point in results.curve],
        "figures": {
            name: [
                [
                    [round(v, 5) for v in (getattr(of[s].metrics, name), *of[s].intervals[name])]
                    for of in rows
                ]
                for s in sets
            ]
            for name in METRIC_NAMES
        },
    }


def _context(results: Results) -> dict[str, Any]:
    """What the template of a run's page shows, but for plots and gallery."""
    header, broken = results.header, results.frame[results.frame["error"].notna()]
    return {
        "title": results.folder.resolve().parent.name,
        "subtitle": results.folder.resolve().name,
        "unfinished": results.unfinished,
        "primary": header.scores[0],
        "baselines": BASELINES,
        "ind": header.datasets[0],
        "facts": _facts(results),
        "tiles": _tiles(results),
        "rows": results.rows,
        "curve": results.curve,
        "budget": results.budget,
        "floors": _floors(results.rows),
        "sets": [
            (name, header.groups.get(name, "in-distribution"), results.sizes[name], n)
            for name, n in results.left_out.items()
        ],
        "left_out": broken[["dataset", "index", "path", "error"]][:REASONS].to_dict("records"),
        "left_out_count": len(broken),
        "images": sum(results.sizes.values()),
        "scores": header.scores,
        "datasets": header.datasets,
        "sessions": [_session(session) for session in results.sessions],
        "settings": yaml.safe_dump(results.run["config"], sort_keys=False)
        if results.run.get("config")
        else "",
    }


def _gallery(results: Results, shown: Cards, data: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of plots and gallery."""
    return {
        "shown": len(shown.cards),
        "kept": shown.kept,
        "classes": sorted(
            {card["prediction"] for card in shown.cards if card["prediction"]}, key=_natural
        ),
        "plots": {name: data[name] is not None for name in ("stops", "seconds")},
        "seconds": data["seconds"],
        "sampled": [
            {
                "name": name,
                "count": len(of["index"]),
                "of": of["of"],
                "missing": of["of"] - len(of["index"]),
            }
            for name, of in zip(results.header.datasets, data["scatter"], strict=True)
        ],
    }


def write_comparison_page(runs: Sequence[Results], lines: Sequence[Compared], path: Path) -> None:
    """The page of several runs.

    Raises:
        InputError: it could not be written.
    """
    letters, points = [letter(i) for i in range(len(runs))], curve_points(len(runs) * len(lines))
    data: dict[str, Any] = {
        "shades": len(COLOURS),
        "runs": [
            {"letter": of, "name": run.name, "colour": COLOURS[i % len(COLOURS)]}
            for i, (of, run) in enumerate(zip(letters, runs, strict=True))
        ],
        "lines": [
            {
                "group": line.group,
                "dataset": line.dataset,
                "score": list(line.score),
                "curves": _curves(runs, line, points),
                "figures": {
                    name: [
                        [getattr(row.metrics, name), *row.intervals.get(name, (None, None))]
                        for row in line.rows
                    ]
                    for name in METRIC_NAMES
                },
                "less": {
                    name: [[value, *ends] for value, ends in line.less_first[name]]
                    for name in METRIC_NAMES
                },
            }
            for line in lines
        ],
    }
    context = {
        "title": "Comparison",
        "unfinished": "",
        "subtitle": f"of {len(runs)} runs against {runs[0].header.datasets[0]}",
        "runs": [(of, run, _facts(run)) for of, run in zip(letters, runs, strict=True)],
        "colours": [run["colour"] for run in data["runs"]],
        "lines": lines,
        "letters": letters,
        "floors": _floors([row for line in lines for row in line.rows]),
    }
    _write(_rendered("comparison.html.j2", data, context), path)


def _rendered(template: str, data: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    return (
        _templates()
        .get_template(template)
        .render(
            context,
            data=Markup(as_json(data)),
            css=Markup((HERE / "page.css").read_text("utf-8")),
            js=Markup((HERE / "page.js").read_text("utf-8")),
            plotly=Markup(get_plotlyjs()),
        )
    )


def _write(page: str, path: Path) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


@cache
def _templates() -> Environment:
    found = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters |= {
        "percent": _percent,
        "ends": _ends,
        "number": _number,
        "bytes": _bytes,
        "span": _span,
    }
    return found


def _tiles(results: Results) -> list[tuple[str, str, ResultRow, ResultRow | None]]:
    """For each group of sets its name, of how many sets it is, its row of the headline score and that of MSP."""
    tiles = []
    for group in dict.fromkeys(row.group for row in results.rows):
        of_group = [row for row in results.rows if row.group == group]
        sets = list(dict.fromkeys(row.dataset for row in of_group if row.dataset != "mean"))
        named = {
            row.score: row
            for row in of_group
            if row.dataset == (sets[0] if len(sets) == 1 else "mean")
        }
        about = sets[0] if len(sets) == 1 else f"mean of {len(sets)} sets"
        tiles.append((group, about, named[results.header.scores[0]], named.get("msp")))
    return tiles


def _facts(results: Results) -> list[tuple[str, str]]:
    """What the head of the page says of a run, as far as it is known."""
    sessions, left_out = results.sessions, sum(results.left_out.values())
    first, last = (sessions[0], sessions[-1]) if sessions else ({}, {})
    images = f"{sum(results.sizes.values()):,} scored" + (
        f", {left_out:,} left out" if left_out else ""
    )
    facts = {"Score": results.header.scores[0], "Images": images}
    if not math.isnan(results.accuracy):
        facts["Classifier"] = (
            f"{100 * results.accuracy:.2f} % right on {results.header.datasets[0]}"
        )
    if first.get("began"):
        facts["Begun"] = _time(first["began"]) + (
            f", {len(sessions)} sessions" if len(sessions) > 1 else ""
        )
    if last.get("ended"):
        facts["Ended"] = _time(last["ended"])
    if machine := _machine(last):
        facts["Machine"] = machine
    if command := first.get("command"):
        facts["Command"] = (
            shlex.join(map(str, command)) if isinstance(command, list) else str(command)
        )
    facts["Folder"] = str(results.folder.resolve())
    return list(facts.items())


def _machine(session: Mapping[str, Any]) -> str:
    machine = _dict(session, "machine")
    gpus = machine.get("gpus")
    devices = session.get("devices")
    what = (
        gpus[0]
        if isinstance(gpus, list) and gpus
        else f"{machine['cpus']} CPU cores"
        if machine.get("cpus")
        else ""
    )
    times = f"{devices} devices" if isinstance(devices, int) and devices > 1 else ""
    return ", ".join(
        str(part) for part in (machine.get("host") or session.get("host"), what, times) if part
    )


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    """A session as the page shows it: what is not known is None."""
    speed = _dict(session, "throughput")
    stages = {
        name: float(s) for name, s in _dict(speed, "stages").items() if isinstance(s, int | float)
    }
    total = sum(stages.values())
    return {
        "began": _time(session.get("began") or ""),
        "machine": _machine(session),
        "images": session.get("images", speed.get("images")),
        "images_per_second": speed.get("images_per_second"),
        "nfe_per_second": speed.get("nfe_per_second"),
        "peak_memory_bytes": speed.get("peak_memory_bytes"),
        "stages": [(name, seconds, 100 * seconds / total) for name, seconds in stages.items()]
        if total
        else [],
        "versions": _dict(session, "versions"),
        "revisions": _dict(session, "revisions"),
    }


def _dict(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of the record; empty where it is missing or something else."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _curves(runs: Sequence[Results], line: Compared, points: int) -> list[dict[str, Any]] | None:
    """The ROC curve of each run; None for the mean over a group."""
    if line.dataset == "mean":
        return None
    curves = []
    for run, score in zip(runs, line.score, strict=True):
        k, d = run.header.scores.index(score), run.header.datasets.index(line.dataset)
        x, y = roc(run.table.of(0)[:, k], run.table.of(d)[:, k], points)
        curves.append({"x": x.round(5).tolist(), "y": y.round(5).tolist()})
    return curves


def _floors(rows: Sequence[ResultRow]) -> dict[str, tuple[float, float]]:
    """Where the scale of the small intervals of a figure begins and ends, in steps of 2 %."""
    scales = {}
    for name in METRIC_NAMES:
        values = [
            v
            for row in rows
            for v in (getattr(row.metrics, name), *row.intervals.get(name, ()))
            if not math.isnan(v)
        ]
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        low, high = math.floor(low * 50) / 50, math.ceil(high * 50) / 50
        scales[name] = (low, high if high > low else low + 0.02)
    return scales


def _span(row: ResultRow, name: str, scale: tuple[float, float]) -> dict[str, float] | None:
    """A figure and its interval in percent of a scale."""
    value, interval = getattr(row.metrics, name), row.intervals.get(name)
    if interval is None or any(math.isnan(v) for v in (value, *interval)):
        return None
    low, high, at = (
        round(100 * (v - scale[0]) / (scale[1] - scale[0]), 2) for v in (*interval, value)
    )
    return {"low": low, "width": round(high - low, 2), "at": at}


def _time(iso: Any) -> str:
    """To the minute, in the time zone that it is given in."""
    try:
        return datetime.fromisoformat(str(iso)).strftime("%-d %B %Y, %H:%M %Z")
    except ValueError:
        return str(iso)


def _percent(share: float | None, signed: bool = False) -> str:
    return (
        "–"  # noqa: RUF001
        if share is None or math.isnan(share)
        else f"{100 * share:+.2f}"
        if signed
        else f"{100 * share:.2f}"
    )


def _ends(interval: Interval | None, signed: bool = False) -> str:
    if interval is None or math.isnan(interval.low):
        return ""
    return (
        f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
        if signed
        else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
    )


def _number(value: Any) -> str:
    """With three digits that count."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"  # noqa: RUF001
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _bytes(count: Any) -> str:
    return f"{count / 2**30:.1f} GiB" if isinstance(count, int | float) else "–"  # noqa: RUF001


def _natural(name: str) -> tuple[bool, float, str]:
    """Numbers in their order, before words."""
    return (False, float(name), "") if name.isdecimal() else (True, 0.0, name)
