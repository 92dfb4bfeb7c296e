"""DiffGuard: training-free, diffusion-based out-of-distribution detection (Gao et al., ICCV 2023)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifiers.classifier import Classifier
    from .config import load
    from .deploy.decisions import Decision, Decisions
    from .deploy.detector import Detector
    from .diffguard import DiffGuard
    from .errors import InputError
    from .evaluation.module import DiffGuardModule
    from .metrics.torchmetric import OODMetrics
    from .stages import Detection

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
    "classifiers.classifier": ["Classifier"],
    "config": ["load"],
    "deploy.decisions": ["Decision", "Decisions"],
    "deploy.detector": ["Detector"],
    "diffguard": ["DiffGuard"],
    "errors": ["InputError"],
    "evaluation.module": ["DiffGuardModule"],
    "metrics.torchmetric": ["OODMetrics"],
    "stages": ["Detection"],
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
