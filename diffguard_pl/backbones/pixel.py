"""The guided-diffusion family: pixel space, with or without classes."""

from diffusers import UNet2DModel
from torch import Tensor

from ..diffusion.schedule import Schedule, cosine_alpha_bar, linear_alpha_bar, respaced
from ..errors import choose
from .base import Backbone
from .convert import GuidedDiffusionArchitecture, guided_diffusion_unet, load_diffusers, resolve

ALPHA_BAR = {"linear": linear_alpha_bar, "cosine": cosine_alpha_bar}


class PixelDiffusion(Backbone):
    """A UNet on images (guided-diffusion; Dhariwal & Nichol 2021), hosted in diffusers' ``UNet2DModel``.

    Args:
        checkpoint: a guided-diffusion ``.pt``, a folder of ``UNet2DModel.save_pretrained``, or the name of shipped weights.
        architecture: guided-diffusion's flags, for a ``.pt``; a folder brings its own but for the noise schedule.
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
        path = resolve(checkpoint)
        architecture = architecture or GuidedDiffusionArchitecture()
        choose("noise_schedule", architecture.noise_schedule, list(ALPHA_BAR))
        unet = load_diffusers(UNet2DModel, path) if path.is_dir() else guided_diffusion_unet(path, architecture)
        super().__init__(unet.config.sample_size, input_size, process_method)
        self.unet, self.clip_denoised = unet, clip_denoised
        self.alpha_bar = ALPHA_BAR[architecture.noise_schedule](architecture.diffusion_steps)

    def schedule(self, steps: int) -> Schedule:
        return respaced(self.alpha_bar, steps)

    def encode(self, images: Tensor) -> Tensor:
        return self.to_model_size(images)

    def decode(self, x: Tensor) -> Tensor:
        return self.to_input_size(x)

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        classes = labels if self.unet.config.num_class_embeds else None
        return self.unet(x, t, class_labels=classes).sample[:, :3].float()
