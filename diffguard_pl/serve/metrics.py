"""Counters and histograms in Prometheus' text format (version 0.0.4).

Five metrics whose names and labels are constants do not need prometheus_client.
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Count:
    """Counter with one label.

    Args:
        name, text: Name and help text.
        label: Name of the label.
        values: Values of the label that are shown from the start, with 0.
    """

    def __init__(self, name: str, text: str, label: str, values: Iterable[str] = ()):
        self.name, self.text, self.label = name, text, label
        self._lock = threading.Lock()
        self._counts = Counter(dict.fromkeys(values, 0))

    def add(self, value: str) -> None:
        """Count one more of a value of the label."""
        with self._lock:
            self._counts[value] += 1

    def __getitem__(self, value: str) -> int:
        return self._counts[value]

    def lines(self) -> list[str]:
        """Return the metric in the text format."""
        with self._lock:
            counts = sorted(self._counts.items())
        found = [f'{self.name}{{{self.label}="{value}"}} {count}' for value, count in counts]
        return [*_header(self.name, self.text, "counter"), *found]


class Histogram:
    """Histogram of a quantity.

    Args:
        name, text: Name and help text.
        bounds: Upper bounds of the buckets, ascending. A last one is infinite.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float]):
        self.name, self.text, self.bounds = name, text, bounds
        self._lock = threading.Lock()
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Add an observation."""
        with self._lock:
            self._counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self._counts)

    def lines(self) -> list[str]:
        """Return the metric in the text format, whose buckets are cumulative."""
        with self._lock:
            counts, total = list(self._counts), self.sum
        found, below = _header(self.name, self.text, "histogram"), 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], counts, strict=True):
            below += count
            found.append(f'{self.name}_bucket{{le="{bound}"}} {below}')
        return [*found, f"{self.name}_sum {total}", f"{self.name}_count {below}"]


class Metrics:
    """Metrics of a server.

    Attributes:
        requests: Requests for decisions by the status of their response.
        images: Images by decision: ``accept``, ``reject``, or ``error`` if there is none.
        batches: Images per batch.
        seconds: Seconds from a request's arrival to its decision.
    """

    def __init__(self) -> None:
        self.requests = Count(
            "diffguard_requests_total",
            "Requests for decisions by HTTP status.",
            "code",
            ["200"],
        )
        self.images = Count(
            "diffguard_images_total",
            "Images by decision; error if they could not be judged.",
            "decision",
            ["accept", "reject", "error"],
        )
        self.batches = Histogram(
            "diffguard_batch_images", "Images per batch of the detector.", BATCH_SIZES
        )
        self.seconds = Histogram(
            "diffguard_request_seconds", "Seconds from request to decision.", SECONDS
        )

    def text(self, waiting: int, in_progress: int) -> str:
        """Return all metrics in the text format.

        Args:
            waiting: Number of images that wait for the detector.
            in_progress: Number of images that have been accepted and not been answered.
        """
        gauges = {
            "diffguard_queue_images": ("Images that wait for the detector.", waiting),
            "diffguard_images_in_progress": ("Images accepted and not answered.", in_progress),
        }
        lines = []
        for metric in (self.requests, self.images, self.batches, self.seconds):
            lines += metric.lines()
        for name, (text, value) in gauges.items():
            lines += [*_header(name, text, "gauge"), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def _header(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
