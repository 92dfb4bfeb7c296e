"""What happens beside the test: progress, scores, pictures and report on disk, the result table, loggers, the record of the run."""

from .page import ReportPage
from .pictures import PictureWriter
from .progress import RunProgress
from .reconstructions import ReconstructionLogger, RunLogger
from .record import RunRecord
from .scores import ScoreWriter
from .stop import GracefulStop
from .table import MetricsTable
from .throughput import ThroughputMonitor
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
