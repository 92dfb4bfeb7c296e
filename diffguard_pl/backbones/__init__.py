"""Pre-trained diffusion models behind one interface: encode, decode, eps(x, t, labels) on rows of a batch."""

from .base import Backbone
from .convert import FirstStageArchitecture, GuidedDiffusionArchitecture, LatentDiffusionArchitecture
from .latent import LatentDiffusion
from .pipeline import DiffusersPipeline
from .pixel import PixelDiffusion

__all__ = [
    "Backbone",
    "DiffusersPipeline",
    "FirstStageArchitecture",
    "GuidedDiffusionArchitecture",
    "LatentDiffusion",
    "LatentDiffusionArchitecture",
    "PixelDiffusion",
]
