"""Pixel-space backbone: the guided-diffusion family, with or without class labels."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..checkpoints.architectures import GuidedDiffusionArchitecture
from ..checkpoints.converted import converted_or_original, known_architecture
from ..diffusion.schedule import Schedule, respaced, respaced_by
from ..dtypes import at_least_float32
from ..errors import choose
from .base import Backbone
from .convert_guided_diffusion import (
    NOISE_SCHEDULES,
    build_guided_diffusion,
    load_guided_diffusion,
)
from .load import RANDOM, image_side, load_diffusers, with_random_weights

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class PixelDiffusion(Backbone):
    """A UNet on images (guided-diffusion; Dhariwal & Nichol 2021), hosted in ``UNet2DModel``.

    Args:
        checkpoint: A guided-diffusion ``.pt``; a folder of ``UNet2DModel.save_pretrained``; a name
            or a URL (see :func:`diffguard_pl.checkpoints.registry.resolve`); or ``random`` for a
            dry run with random weights. A converted copy (``diffguard-pl checkpoints convert``) is
            used instead of its file.
        architecture: guided-diffusion's flags of a ``.pt``. Defaults to those of the named weights,
            else to those of ``256x256_diffusion_uncond.pt``. A folder describes its own
            architecture, except for the noise schedule and ``rescale_timesteps`` (a converted copy
            describes these, too).
        input_size: Side, in pixels, of the images under test. Defaults to the model's own size.
        process_method: How images get to the model's size: ``resize`` or ``pad``.
        clip_denoised: Whether to clamp predicted images x0 to [-1, 1]. Defaults to True.
    """

    is_pixel_space = True

    def __init__(
        self,
        checkpoint: str,
        architecture: GuidedDiffusionArchitecture | None = None,
        input_size: int | None = None,
        process_method: str = "resize",
        clip_denoised: bool = True,
    ):
        a = architecture or known_architecture(checkpoint, GuidedDiffusionArchitecture)
        choose("noise_schedule", a.noise_schedule, list(NOISE_SCHEDULES))
        unet = _load_unet(checkpoint, a)
        super().__init__(image_side(unet, Path(checkpoint)), input_size, process_method)
        self.unet = unet
        self.clip_denoised = clip_denoised
        self.num_classes = unet.config.num_class_embeds
        self.alpha_bar = NOISE_SCHEDULES[a.noise_schedule](a.diffusion_steps)
        self.time_scale = 1000 / a.diffusion_steps if a.rescale_timesteps else 1

    @property
    def denoiser(self) -> "UNet2DModel":
        return self.unet

    def schedule(self, steps: int) -> Schedule:
        return respaced(self.alpha_bar, steps)

    def respaced_schedule(self, timestep_respacing: str | int) -> Schedule:
        return respaced_by(self.alpha_bar, timestep_respacing)

    def encode(self, images: Tensor) -> Tensor:
        return self.to_model_size(images)

    def decode(self, x: Tensor) -> Tensor:
        return self.to_input_size(x)

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        classes = labels if self.num_classes else None
        output = self.unet(x.to(self.dtype), t * self.time_scale, class_labels=classes).sample
        # channels 4 to 6, if any, are the learned variance, which DDIM with eta = 0 does not need
        return at_least_float32(output[:, :3])


def _load_unet(checkpoint: str, architecture: GuidedDiffusionArchitecture) -> "UNet2DModel":
    if checkpoint == RANDOM:
        return with_random_weights(build_guided_diffusion(architecture))[0]
    path = converted_or_original(checkpoint, architecture)
    if path.is_dir():
        return load_diffusers("UNet2DModel", path)
    return load_guided_diffusion(path, architecture)
