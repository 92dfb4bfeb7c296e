"""Test data: the embedded digits, the benchmarks of OpenOOD, and sets of your own."""

from .digits import DigitsDataModule
from .ood import OODDataModule
from .openood import CIFAROODDataModule, ImageNetOODDataModule
from .sources import ClassFolders, HuggingFaceImages, ImageDirectory, ImageList

__all__ = [
    "CIFAROODDataModule",
    "ClassFolders",
    "DigitsDataModule",
    "HuggingFaceImages",
    "ImageDirectory",
    "ImageList",
    "ImageNetOODDataModule",
    "OODDataModule",
]
