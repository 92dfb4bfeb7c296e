"""Pre-trained diffusion models behind one interface: encode, decode and eps(x, t, labels)."""

from ..checkpoints.architectures import (
    DDPMArchitecture,
    FirstStageArchitecture,
    GuidedDiffusionArchitecture,
    LatentDiffusionArchitecture,
    NoisyClassifierArchitecture,
)
from ..imports import postpone_imports
from .base import Backbone
from .diffusers_pipeline import DiffusersPipeline
from .latent import LatentDiffusion
from .noisy_classifier import NoisyClassifier
from .pixel import PixelDiffusion

__all__ = [
    "Backbone",
    "DDPMArchitecture",
    "DiffusersPipeline",
    "FirstStageArchitecture",
    "GuidedDiffusionArchitecture",
    "LatentDiffusion",
    "LatentDiffusionArchitecture",
    "NoisyClassifier",
    "NoisyClassifierArchitecture",
    "PixelDiffusion",
]

# What diffusers imports along with the networks that are used here: all its other networks, and
# libraries of its schedulers. It is imported later than this, where a network is built.
postpone_imports(
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "scipy.integrate",
    "scipy.stats",
)
