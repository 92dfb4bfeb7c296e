"""Pixel-space backbone: the UNets of guided-diffusion and DDPM, with or without class labels."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..checkpoints.architectures import (
    DDPMArchitecture,
    GuidedDiffusionArchitecture,
    PixelArchitecture,
)
from ..checkpoints.converted import converted_or_original, known_architecture
from ..checkpoints.registry import resolve
from ..checkpoints.state_dicts import find_weights
from ..checkpoints.tensors import load_content
from ..diffusion.schedule import Schedule, respaced, respaced_by
from ..dtypes import at_least_float32
from ..errors import InputError, choose
from .base import Backbone
from .convert_ddpm import DDPM_KEYS, build_ddpm, ddpm_alpha_bar, load_ddpm
from .convert_guided_diffusion import (
    NOISE_SCHEDULES,
    build_guided_diffusion,
    load_guided_diffusion,
)
from .load import RANDOM, image_side, load_diffusers, with_random_weights

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class PixelDiffusion(Backbone):
    """A UNet on images, hosted in ``UNet2DModel``.

    The UNet is guided-diffusion's (Dhariwal & Nichol 2021), its predecessor improved-diffusion's,
    or that of DDPM (Ho et al. 2020), each without labels or class-conditional. One with a label for
    "no class", such as DiffNB's, can be guided without a classifier.

    Args:
        checkpoint: A file of guided-diffusion, improved-diffusion, DDIM or DiffNB; a folder of
            ``UNet2DModel.save_pretrained``; a name or a URL (see
            :func:`diffguard_pl.checkpoints.registry.resolve`); or ``random`` for a dry run with
            random weights. A converted copy (``diffguard-pl checkpoints convert``) is used instead
            of its file.
        architecture: Settings of a file: guided-diffusion's flags, or those of DDPM. Defaults to
            those of the named weights, else, by the keys of the file, to those of
            ``256x256_diffusion_uncond.pt`` or of DiffNB's ``ddim_cifar10_cond``. A folder describes
            its own architecture, except for the noise schedule, ``rescale_timesteps`` and whether
            the last label means "no class" (a converted copy describes these, too).
        input_size: Side, in pixels, of the images under test. Defaults to the model's own size.
        process_method: How images get to the model's size: ``resize`` or ``pad``.
        clip_denoised: Whether to clamp predicted images x0 to [-1, 1]. Defaults to True.
        antialias: Whether resizing is antialiased. Defaults to True; in the paper's environment
            (torchvision 0.11.3) it is not.
    """

    is_pixel_space = True

    def __init__(
        self,
        checkpoint: str,
        architecture: GuidedDiffusionArchitecture | DDPMArchitecture | None = None,
        input_size: int | None = None,
        process_method: str = "resize",
        clip_denoised: bool = True,
        antialias: bool = True,
    ):
        a = architecture or _default_architecture(checkpoint)
        alpha_bar = _alpha_bar(a)
        unet = _load_unet(checkpoint, a)
        image_size = image_side(unet, Path(checkpoint))
        super().__init__(image_size, input_size, process_method, antialias)
        self.unet = unet
        self.clip_denoised = clip_denoised
        self.alpha_bar = alpha_bar
        self.time_scale = _time_scale(a)

        # The last label may mean "no class".
        self.num_classes = unet.config.num_class_embeds
        if self.num_classes and a.null_class:
            self.null_label = self.num_classes = self.num_classes - 1

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


def load_pixel_unet(path: Path, architecture: PixelArchitecture) -> "UNet2DModel":
    """Load the UNet of a checkpoint file in its authors' layout.

    Raises:
        InputError: The file is damaged, or does not fit or contradicts the architecture.
    """
    if isinstance(architecture, DDPMArchitecture):
        return load_ddpm(path, architecture)
    try:
        return load_guided_diffusion(path, architecture)
    except InputError as error:
        if not _has_ddpm_keys(path):
            raise
        raise InputError(
            f"checkpoint {path}: has the keys of DDPM, not of guided-diffusion; give "
            "backbone.architecture the settings of DDPM, such as ch and ch_mult, or none"
        ) from error


def _load_unet(checkpoint: str, architecture: PixelArchitecture) -> "UNet2DModel":
    if checkpoint == RANDOM:
        return with_random_weights(_build_unet(architecture))[0]
    path = converted_or_original(checkpoint, architecture)
    if path.is_dir():
        return load_diffusers("UNet2DModel", path)
    return load_pixel_unet(path, architecture)


def _build_unet(architecture: PixelArchitecture) -> "UNet2DModel":
    """Build a UNet without weights, on the meta device."""
    if isinstance(architecture, DDPMArchitecture):
        return build_ddpm(architecture)
    return build_guided_diffusion(architecture)


def _default_architecture(checkpoint: str) -> PixelArchitecture:
    """Return what is known of the checkpoint's architecture, else the default of its layout."""
    kinds: list[type[PixelArchitecture]] = [GuidedDiffusionArchitecture, DDPMArchitecture]
    known = known_architecture(checkpoint, *kinds)
    if known:
        return known
    if checkpoint == RANDOM:
        return GuidedDiffusionArchitecture()
    path = resolve(checkpoint)
    if path.is_file() and _has_ddpm_keys(path):
        return DDPMArchitecture()
    return GuidedDiffusionArchitecture()


def _has_ddpm_keys(path: Path) -> bool:
    return bool(find_weights(load_content(path), DDPM_KEYS))


def _alpha_bar(architecture: PixelArchitecture) -> Tensor:
    """Return the signal level alpha-bar [T] of the training schedule."""
    if isinstance(architecture, DDPMArchitecture):
        return ddpm_alpha_bar(architecture)
    choose("noise_schedule", architecture.noise_schedule, list(NOISE_SCHEDULES))
    return NOISE_SCHEDULES[architecture.noise_schedule](architecture.diffusion_steps)


def _time_scale(architecture: PixelArchitecture) -> float:
    """Return the factor on the timesteps that the network is given."""
    a = architecture
    if isinstance(a, GuidedDiffusionArchitecture) and a.rescale_timesteps:
        return 1000 / a.diffusion_steps
    return 1
