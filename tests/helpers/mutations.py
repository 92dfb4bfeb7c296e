"""Mutations of files and of nested settings, and what a function may make of them.

The fuzz tests try the same examples each time. ``DIFFGUARD_FUZZ=20 pytest tests/fuzz`` tries 20
times as many, and others each time.
"""

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from diffguard_pl import InputError

FACTOR = os.environ.get("DIFFGUARD_FUZZ")
LONGEST_MESSAGE = 2000
STRANGE_VALUES = [
    None,
    True,
    False,
    0,
    -1,
    3,
    2**63,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "12",
    "a\nb",
    "no such thing",
    "../../x",
    "x" * 100_000,
    "\u2028\x00\x1b[31m",
    "=1+1",
    [],
    [[]],
    [None],
    ["x", "x"],
    [1e9, -1],
    {},
    {"x": {}},
    {"class_path": "os.system", "init_args": {"command": "true"}},
    {"class_path": "collections.Counter"},
]
Result = TypeVar("Result")


def fuzz(examples: int) -> settings:
    """Return the settings of a fuzz test with this number of examples."""
    return settings(
        max_examples=max(1, round(examples * float(FACTOR or 1))),
        derandomize=FACTOR is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(call: Callable[[], Result]) -> Result | None:
    """Return a function's result, or None if it ends in an `InputError` of one line."""
    try:
        return call()
    except InputError as error:
        message = str(error)
        assert message
        assert len(message.splitlines()) == 1, message
        assert len(message) <= LONGEST_MESSAGE, f"{message[:200]}... has {len(message)} characters"
        return None


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return content with one to three bytes or sections changed, most often near its beginning."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["flip", "set", "cut", "repeat", "insert", "truncate"]))
        near, anywhere = st.integers(0, min(256, len(data))), st.integers(0, len(data))
        at = draw(near | anywhere)
        end = at + draw(st.sampled_from([1, 2, 4, 8, 64, 1024]))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            value = draw(st.sampled_from([0x00, 0x01, 0x7F, 0x80, 0xFF]))
            data[at:end] = bytes([value]) * len(data[at:end])
        elif kind == "cut":
            del data[at:end]
        elif kind == "repeat":
            data[at:at] = data[at:end]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "truncate":
            del data[at:]
    return bytes(data)


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """Return nested dicts and lists with one or two entries replaced, removed, renamed or added."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        places = list(_places(tree))
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        kinds = ["replace", "replace", "remove", "add", "exchange"]
        kind = draw(st.sampled_from([*kinds, "rename"] if isinstance(container, dict) else kinds))
        strange = copy.deepcopy(draw(st.sampled_from(STRANGE_VALUES)))
        if kind == "replace":
            container[key] = strange
        elif kind == "remove":
            del container[key]
        elif kind == "rename":
            container[draw(st.sampled_from(["x", "", f"{key}s", f"{key}.x"]))] = container.pop(key)
        elif kind == "exchange":
            other, its_key = draw(st.sampled_from(places))
            container[key] = copy.deepcopy(other[its_key])
        elif isinstance(container, dict):
            container["added"] = strange
        else:
            container.insert(key, strange)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every entry of nested dicts and lists as its container and its key; a few of a list."""
    if isinstance(tree, dict):
        keys: list[Any] = list(tree)
    elif isinstance(tree, list):
        keys = sorted({*range(min(3, len(tree))), *range(max(0, len(tree) - 1), len(tree))})
    else:
        return
    for key in keys:
        yield tree, key
        yield from _places(tree[key])
