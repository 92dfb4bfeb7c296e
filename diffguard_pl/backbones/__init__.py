"""Pre-trained diffusion models behind one interface: encode, decode and eps(x, t, labels)."""

from ..checkpoints.architectures import (
    DDPMArchitecture,
    FirstStageArchitecture,
    GuidedDiffusionArchitecture,
    LatentDiffusionArchitecture,
    NoisyClassifierArchitecture,
)
from .base import Backbone
from .diffusers_pipeline import DiffusersPipeline
from .edm import EDMDiffusion
from .latent import LatentDiffusion
from .noisy_classifier import NoisyClassifier
from .parametrised import Latents, ParametrisedBackbone
from .pixel import PixelDiffusion
from .sit import SiTDiffusion
from .text_to_image import TextToImage

__all__ = [
    "Backbone",
    "DDPMArchitecture",
    "DiffusersPipeline",
    "EDMDiffusion",
    "FirstStageArchitecture",
    "GuidedDiffusionArchitecture",
    "LatentDiffusion",
    "LatentDiffusionArchitecture",
    "Latents",
    "NoisyClassifier",
    "NoisyClassifierArchitecture",
    "ParametrisedBackbone",
    "PixelDiffusion",
    "SiTDiffusion",
    "TextToImage",
]
