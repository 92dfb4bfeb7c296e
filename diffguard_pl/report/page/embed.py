"""Data as text inside a page."""

import json
import math
from collections.abc import Mapping
from typing import Any


def as_json(data: Any) -> str:
    """For a script element: nothing in it can end that, and what JSON has no word for is null."""
    return json.dumps(_plain(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
