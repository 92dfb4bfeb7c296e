"""The guided-diffusion family: pixel space, with or without classes."""

from diffusers import UNet2DModel
from torch import Tensor

from ..checkpoints.architectures import GuidedDiffusionArchitecture
from ..checkpoints.converted import converted_or_original, known_architecture
from ..diffusion.schedule import Schedule, cosine_alpha_bar, linear_alpha_bar, respaced
from ..dtypes import at_least_float32
from ..errors import choose
from .base import Backbone
from .convert_guided_diffusion import guided_diffusion_module, guided_diffusion_unet
from .load import RANDOM, load_diffusers, with_random_weights

ALPHA_BAR = {"linear": linear_alpha_bar, "cosine": cosine_alpha_bar}


class PixelDiffusion(Backbone):
    """A UNet on images (guided-diffusion; Dhariwal & Nichol 2021), hosted in diffusers' ``UNet2DModel``.

    Args:
        checkpoint: a guided-diffusion ``.pt``, a folder of ``UNet2DModel.save_pretrained``, a name or an address (see
            :func:`diffguard_pl.checkpoints.registry.resolve`), or ``random`` for weights that make a dry run possible. A converted copy
            (``diffguard-pl checkpoints convert``) is used in place of its file.
        architecture: guided-diffusion's flags, for a ``.pt``; none: those of the name, or the defaults. A folder brings its own but
            for the noise schedule and rescale_timesteps (a converted copy brings these too).
        input_size: side of the images that are tested; none: the model's own.
        process_method: how they are brought to the model's size: ``resize`` or ``pad``.
        clip_denoised: clamp predicted pictures to [-1, 1].
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
        choose("noise_schedule", a.noise_schedule, list(ALPHA_BAR))
        unet = _unet(checkpoint, a)
        super().__init__(unet.config.sample_size, input_size, process_method)
        self.unet, self.clip_denoised = unet, clip_denoised
        self.num_classes = unet.config.num_class_embeds
        self.alpha_bar = ALPHA_BAR[a.noise_schedule](a.diffusion_steps)
        self.time_scale = 1000 / a.diffusion_steps if a.rescale_timesteps else 1

    @property
    def denoiser(self) -> UNet2DModel:
        return self.unet

    def schedule(self, steps: int) -> Schedule:
        return respaced(self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        return self.to_model_size(images)

    def decode(self, x: Tensor) -> Tensor:
        return self.to_input_size(x)

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        classes = labels if self.unet.config.num_class_embeds else None
        output = self.unet(x.to(self.dtype), t * self.time_scale, class_labels=classes).sample
        return at_least_float32(output[:, :3])


def _unet(checkpoint: str, architecture: GuidedDiffusionArchitecture) -> UNet2DModel:
    if checkpoint == RANDOM:
        return with_random_weights(guided_diffusion_module(architecture))[0]
    path = converted_or_original(checkpoint, architecture)
    return (
        load_diffusers(UNet2DModel, path)
        if path.is_dir()
        else guided_diffusion_unet(path, architecture)
    )
