"""What happens beside the test: progress, scores on disk, pictures, the result table."""

from .pictures import PictureGrid
from .progress import RunProgress
from .scores import ScoreWriter
from .table import MetricsTable

__all__ = ["MetricsTable", "PictureGrid", "RunProgress", "ScoreWriter"]
