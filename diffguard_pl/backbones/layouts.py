"""The layout of a checkpoint in its authors' format, by its keys."""

from pathlib import Path

from ..checkpoints.architectures import (
    DDPMArchitecture,
    GuidedDiffusionArchitecture,
    LatentDiffusionArchitecture,
    UNetArchitecture,
)
from ..checkpoints.state_dicts import find_weights, first_keys
from ..checkpoints.tensors import load_content
from ..errors import InputError
from .convert_ddpm import DDPM_KEYS
from .convert_guided_diffusion import UNET_KEYS
from .convert_latent_diffusion import UNET


def layout_of(path: Path) -> type[UNetArchitecture]:
    """Return the architecture's class of a checkpoint file.

    Raises:
        InputError: The file is damaged, or has another layout.
    """
    content = load_content(path)
    # guided diffusion's keys are those of latent diffusion without a prefix
    if find_weights(content, [UNET + key for key in UNET_KEYS]):
        return LatentDiffusionArchitecture
    if find_weights(content, UNET_KEYS):
        return GuidedDiffusionArchitecture
    if find_weights(content, DDPM_KEYS):
        return DDPMArchitecture
    raise InputError(
        f"checkpoint {path}: neither guided diffusion (input_blocks...) nor latent diffusion "
        f"(model.diffusion_model...) nor DDPM (temb..., down...); {first_keys(content)}"
    )
