"""Test data: the embedded benchmarks, the benchmarks of OpenOOD, and custom datasets.

Classes are imported on first use: reading an image file must not import Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import OODData
    from .digits import DigitsDataModule
    from .fashion import FashionDataModule
    from .ood import OODDataModule
    from .openood import CIFAROODDataModule, ImageNetOODDataModule
    from .sources import ClassFolders, HuggingFaceImages, ImageDirectory, ImageList

__all__ = [
    "CIFAROODDataModule",
    "ClassFolders",
    "DigitsDataModule",
    "FashionDataModule",
    "HuggingFaceImages",
    "ImageDirectory",
    "ImageList",
    "ImageNetOODDataModule",
    "OODData",
    "OODDataModule",
]
MODULES = {
    "base": ["OODData"],
    "digits": ["DigitsDataModule"],
    "fashion": ["FashionDataModule"],
    "ood": ["OODDataModule"],
    "openood": ["CIFAROODDataModule", "ImageNetOODDataModule"],
    "sources": ["ClassFolders", "HuggingFaceImages", "ImageDirectory", "ImageList"],
}


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def import_data_modules() -> None:
    """Import every class, so that a config may name it without its package."""
    for module in MODULES:
        import_module(f".{module}", __name__)
