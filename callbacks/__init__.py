"""What happens beside the test: progress, scores on disk, pictures, trajectories, the result table."""

from .pictures import PictureGrid
from .progress import RunProgress
from .scores import ScoreWriter
from .table import MetricsTable
from .trajectory import TrajectoryLogger

__all__ = ["MetricsTable", "PictureGrid", "RunProgress", "ScoreWriter", "TrajectoryLogger"]
