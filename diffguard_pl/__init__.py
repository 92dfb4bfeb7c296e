"""DiffGuard: training-free, diffusion-based out-of-distribution detection (Gao et al., ICCV 2023).

Names are imported on first use: torch, Lightning and diffusers take seconds, and ``--help`` needs
none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .imports import garbage_collection_paused

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
    from .trusted import trust

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
    "trust",
]
_MODULES = {
    "Classifier": "classifiers.classifier",
    "Decision": "deploy.decisions",
    "Decisions": "deploy.decisions",
    "Detection": "stages",
    "Detector": "deploy.detector",
    "DiffGuard": "diffguard",
    "DiffGuardModule": "evaluation.module",
    "InputError": "errors",
    "OODMetrics": "metrics.torchmetric",
    "load": "config",
    "trust": "trusted",
}
_SUBPACKAGES = ("backbones", "callbacks", "datamodules", "diffusion")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        with garbage_collection_paused():
            module = import_module(f".{_MODULES[name]}", __name__)
        return getattr(module, name)
    if name in _SUBPACKAGES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
