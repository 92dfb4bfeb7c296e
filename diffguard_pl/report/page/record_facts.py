"""Facts about a run for the head of a page, and its sessions: whatever the record holds."""

import math
import shlex
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..results import RunResults


def facts(run: RunResults) -> dict[str, str]:
    """Return the known facts about a run by their names, in the order to show them."""
    sessions = run.sessions
    first, last = (sessions[0], sessions[-1]) if sessions else ({}, {})

    images = f"{sum(run.sizes.values()):,} scored"
    left_out = sum(run.left_out.values())
    if left_out:
        images += f", {left_out:,} left out"
    found = {"Primary score": run.primary_score, "Images": images}
    if not math.isnan(run.accuracy):
        found["Classifier accuracy"] = f"{100 * run.accuracy:.2f} % on {run.ind}"
    if not math.isnan(run.full_spectrum_accuracy):
        with_shifted = f"{100 * run.full_spectrum_accuracy:.2f} % with covariate-shifted images"
        found["Full-spectrum accuracy"] = with_shifted
    if first.get("began"):
        found["Started"] = local_time(first["began"])
        if len(sessions) > 1:
            found["Started"] += f", {len(sessions)} sessions"
    if last.get("ended"):
        found["Finished"] = local_time(last["ended"])
    if machine := _machine(last):
        found["Machine"] = machine
    if command := first.get("command"):
        is_list = isinstance(command, list)
        found["Command"] = shlex.join(map(str, command)) if is_list else str(command)
    found["Folder"] = str(run.folder.resolve())
    return found


def session_facts(session: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a session; unknown entries are None or empty."""
    throughput = _mapping(session, "throughput")
    return {
        "began": local_time(session.get("began") or ""),
        "machine": _machine(session),
        "images": session.get("images", throughput.get("images")),
        "images_per_second": throughput.get("images_per_second"),
        "nfe_per_second": throughput.get("nfe_per_second"),
        "peak_memory_bytes": throughput.get("peak_memory_bytes"),
        "stages": _stages(throughput),
        "versions": _mapping(session, "versions"),
        "revisions": _mapping(session, "revisions"),
    }


def local_time(iso: Any) -> str:
    """Format an ISO time to the minute in its own time zone; other text stays as it is."""
    try:
        time = datetime.fromisoformat(str(iso))
        return f"{time.day} {time:%B %Y, %H:%M %Z}"
    except ValueError:
        return str(iso)


def _stages(throughput: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return name, seconds and percentage of each stage; empty if unknown."""
    seconds = {}
    for name, value in _mapping(throughput, "stages").items():
        if isinstance(value, int | float):
            seconds[name] = float(value)
    total = sum(seconds.values())
    if not total:
        return []
    return [(name, value, 100 * value / total) for name, value in seconds.items()]


def _machine(session: Mapping[str, Any]) -> str:
    """Return host, processor and number of devices of a session, as far as known."""
    machine = _mapping(session, "machine")
    gpus, devices = machine.get("gpus"), session.get("devices")
    parts = [machine.get("host") or session.get("host")]
    if isinstance(gpus, list) and gpus:
        parts.append(gpus[0])
    elif machine.get("cpus"):
        parts.append(f"{machine['cpus']} CPU cores")
    if isinstance(devices, int) and devices > 1:
        parts.append(f"{devices} devices")
    return ", ".join(str(part) for part in parts if part)


def _mapping(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an entry of the record; empty if it is missing or not a mapping."""
    entry = record.get(name)
    return entry if isinstance(entry, dict) else {}
