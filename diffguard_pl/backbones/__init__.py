"""Pre-trained diffusion models behind one interface: encode, decode and eps(x, t, labels)."""

# isort: off
from . import postponed  # noqa: F401  before diffusers

# isort: on
from ..checkpoints.architectures import (
    FirstStageArchitecture,
    GuidedDiffusionArchitecture,
    LatentDiffusionArchitecture,
)
from .base import Backbone
from .diffusers_pipeline import DiffusersPipeline
from .latent import LatentDiffusion
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
