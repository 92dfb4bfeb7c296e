"""DiffGuard: training-free, diffusion-based out-of-distribution detection (Gao et al., ICCV 2023)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
WHERE = {
    "classifier": ["Classifier"],
    "config": ["load"],
    "detector": ["Detection", "DiffGuard"],
    "errors": ["InputError"],
    "guard": ["Decision", "Decisions", "Detector"],
    "metrics": ["OODMetrics"],
    "module": ["DiffGuardModule"],
}
"""Names by module, imported when they are asked for: torch, Lightning and diffusers take seconds, and ``--help`` needs none."""


def __getattr__(name: str) -> Any:
    for module, names in WHERE.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    if name in ("backbones", "callbacks", "datamodules", "diffusion"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
