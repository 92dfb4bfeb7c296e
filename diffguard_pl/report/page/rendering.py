"""Rendering of the pages: Jinja templates, their filters, and the data for their scripts."""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...metrics.table import Interval, ResultRow

HERE = Path(__file__).parent
UNKNOWN = "–"  # noqa: RUF001


def render(template: str, data: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """Render a page as one file that works offline.

    Args:
        template: File name of the template.
        data: Data for the page's script.
        context: Variables of the template.
    """
    embedded = {
        "data": Markup(to_json(data)),
        "css": Markup((HERE / "page.css").read_text("utf-8")),
        "js": Markup((HERE / "page.js").read_text("utf-8")),
        "plotly": Markup(_plotly_js()),
    }
    page = _environment().get_template(template).render(context, **embedded)
    # Half of a surrogate pair, as in a damaged record, cannot be written.
    return page.encode("utf-8", "backslashreplace").decode()


def to_json(data: Any) -> str:
    """Convert data to JSON for a script element; NaN and infinities become null.

    ``<`` is escaped, so that no text in the data can end the element.
    """
    text = json.dumps(_without_nan(data), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@cache
def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["percent"] = percent
    environment.filters["interval"] = interval
    environment.filters["interval_bar"] = interval_bar
    environment.filters["number"] = number
    environment.filters["gibibytes"] = gibibytes
    environment.filters["sentence"] = sentence
    return environment


def percent(fraction: float | None, signed: bool = False) -> str:
    """Format a fraction in percent, without the sign "%"."""
    if fraction is None or math.isnan(fraction):
        return UNKNOWN
    return f"{100 * fraction:+.2f}" if signed else f"{100 * fraction:.2f}"


def interval(ends: Interval | None, signed: bool = False) -> str:
    """Format an interval in percent; empty if there is none."""
    if ends is None or math.isnan(ends.low):
        return ""
    low, high = 100 * ends.low, 100 * ends.high
    return f"{low:+.1f} to {high:+.1f}" if signed else f"{low:.1f} to {high:.1f}"


def interval_bar(
    result: ResultRow, metric: str, scale: tuple[float, float]
) -> dict[str, float] | None:
    """Return where to draw a metric and its interval; None without an interval.

    Args:
        result: Result that has the metric.
        metric: Name of the metric.
        scale: Values at the left and at the right end of the bar.

    Returns:
        ``low`` and ``width`` of the interval, and ``at`` of the metric, in percent of the bar.
    """
    ends = result.intervals.get(metric)
    if ends is None:
        return None
    values = [*ends, getattr(result.metrics, metric)]
    if any(math.isnan(value) for value in values):
        return None
    # From values to percent of the bar's width.
    left, right = scale
    low, high, at = (round(100 * (value - left) / (right - left), 2) for value in values)
    return {"low": low, "width": round(high - low, 2), "at": at}


def number(value: Any) -> str:
    """Format a number with three significant digits."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def gibibytes(count: Any) -> str:
    """Format a number of bytes in GiB."""
    return f"{count / 2**30:.1f} GiB" if isinstance(count, int | float) else UNKNOWN


def sentence(text: str) -> str:
    """Begin with a capital letter and end with a full stop."""
    return f"{text[:1].upper()}{text[1:]}."
