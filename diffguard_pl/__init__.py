"""DiffGuard: training-free, diffusion-based out-of-distribution detection (Gao et al., ICCV 2023)."""

from .classifier import Classifier
from .config import load
from .detector import Detection, DiffGuard
from .errors import InputError
from .guard import Decision, Decisions, Detector
from .metrics import OODMetrics
from .module import DiffGuardModule

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "Decision",
    "Decisions",
    "Detection",
    "Detector",
    "DiffGuard",
    "DiffGuardModule",
    "InputError",
    "OODMetrics",
    "load",
]
