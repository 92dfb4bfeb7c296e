"""Callbacks of a test: progress, scores, pictures, report, result table, loggers, run record.

Classes are imported on first use, because some need plotting libraries that others do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .page import ReportPage
    from .pictures import PictureWriter
    from .progress import RunProgress
    from .record import RunRecord
    from .scores import ScoreWriter
    from .stop import GracefulStop
    from .table import MetricsTable
    from .throughput import ThroughputMonitor
    from .trackers import ReconstructionLogger, RunLogger
    from .trajectory import TrajectoryLogger
    from .wandb_run import WandbRun

__all__ = [
    "GracefulStop",
    "MetricsTable",
    "PictureWriter",
    "ReconstructionLogger",
    "ReportPage",
    "RunLogger",
    "RunProgress",
    "RunRecord",
    "ScoreWriter",
    "ThroughputMonitor",
    "TrajectoryLogger",
    "WandbRun",
]
MODULES = {
    "page": ["ReportPage"],
    "pictures": ["PictureWriter"],
    "progress": ["RunProgress"],
    "trackers": ["ReconstructionLogger", "RunLogger"],
    "record": ["RunRecord"],
    "scores": ["ScoreWriter"],
    "stop": ["GracefulStop"],
    "table": ["MetricsTable"],
    "throughput": ["ThroughputMonitor"],
    "trajectory": ["TrajectoryLogger"],
    "wandb_run": ["WandbRun"],
}


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
