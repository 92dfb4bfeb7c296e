"""Backbones of any parametrisation, on images or on latents of an autoencoder."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.ddim import Level
from ..diffusion.parametrisation import Parametrisation
from ..diffusion.schedule import Schedule, alpha_bar_at, karras, uniform
from ..dtypes import at_least_float32
from ..errors import InputError, choose
from .base import Backbone
from .latent import decode_vq
from .load import load_diffusers

AUTOENCODERS = ("AutoencoderKL", "VQModel")
"""Supported classes of the autoencoder."""
SPACINGS = ["uniform", "karras", "scheduler"]
"""Names of the distances of the steps."""


@dataclass(frozen=True)
class Latents:
    """An autoencoder, and what its latents are shifted and scaled by: (mode - shift) * scale.

    Attributes:
        autoencoder: ``AutoencoderKL`` or ``VQModel`` of diffusers.
        scale: A number, or one for each channel.
        shift: The same.
        unit_range: Whether the autoencoder takes images in [0, 1], not in [-1, 1].
    """

    autoencoder: Any
    scale: float | Sequence[float]
    shift: float | Sequence[float] = 0.0
    unit_range: bool = False

    @classmethod
    def of_config(cls, autoencoder: Any) -> "Latents":
        """Return an autoencoder with the scale and the shift of its config.json."""
        config = autoencoder.config
        scale, shift = config.scaling_factor, config.get("shift_factor") or 0.0
        numbers = [scale, shift]
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers) or not scale:
            raise InputError(
                f"autoencoder's config.json: scaling_factor={scale}, shift_factor={shift}: must be "
                "numbers, and the first not 0; download it again"
            )
        if config.get("latents_mean") is None or config.get("latents_std") is None:
            return cls(autoencoder, scale, shift)
        # (mode - mean) * scale / std, as diffusers' pipelines of Stable Diffusion XL
        return cls(
            autoencoder, [scale / std for std in config.latents_std], list(config.latents_mean)
        )

    @property
    def downsampling(self) -> int:
        """Side of an image by that of its latents."""
        # sample_size does not help: that of Stable Diffusion's is 256 or 512 for any use
        return 2 ** (len(self.autoencoder.config.block_out_channels) - 1)


class ParametrisedBackbone(Backbone):
    """A network with the noise levels and the parametrisation of its training.

    A model of this kind implements :meth:`predict`.

    Args:
        side: Side of what the network diffuses: of images in pixels, or of latents.
        alpha_bar: Signal level alpha-bar [T] of the training schedule, in float64.
        parametrisation: What the network takes and predicts.
        latents: Autoencoder. None: the network diffuses images.
        spacing: Distances of the steps: ``uniform`` in the training timesteps; ``karras``, even
            distances of the seventh root of noise / signal (Karras et al. 2022, equation 5); or
            ``scheduler``, as the model's own scheduler has them.
        own_schedule: Function of the number of steps that gives the scheduler's. None: there is
            no scheduler.
        clip_denoised: Whether to clamp predicted images x0 to [-1, 1]. Defaults to True for images
            and to False for latents.
        input_size: Side, in pixels, of the images under test. Defaults to the model's own size.
        process_method: How images get to the model's size: ``resize`` or ``pad``.
        antialias: Whether resizing is antialiased.
    """

    levels: Tensor
    latent_scale: Tensor
    latent_shift: Tensor

    def __init__(
        self,
        side: int,
        alpha_bar: Tensor,
        parametrisation: Parametrisation,
        latents: Latents | None = None,
        spacing: str = "uniform",
        own_schedule: Callable[[int], Schedule] | None = None,
        clip_denoised: bool | None = None,
        input_size: int | None = None,
        process_method: str = "resize",
        antialias: bool = True,
    ):
        image_size = side * (latents.downsampling if latents else 1)
        super().__init__(image_size, input_size, process_method, antialias)
        choose("spacing", spacing, SPACINGS)
        if spacing == "scheduler" and own_schedule is None:
            raise InputError(
                f"spacing=scheduler: {type(self).__name__} has no scheduler; set it to uniform or "
                "karras"
            )
        self.spacing, self.own_schedule = spacing, own_schedule
        self.parametrisation = parametrisation

        # Noise levels; the buffer is a copy on the network's device.
        if not ((alpha_bar > 0) & (alpha_bar < 1)).all() or not (alpha_bar.diff() <= 0).all():
            raise InputError(
                f"{type(self).__name__}: the noise levels must rise from step to step, and be "
                "numbers; check the scheduler's settings"
            )
        self.alpha_bar = alpha_bar
        self.register_buffer("levels", alpha_bar.clone(), persistent=False)

        self.is_pixel_space = latents is None
        self.clip_denoised = self.is_pixel_space if clip_denoised is None else clip_denoised
        self.autoencoder = latents.autoencoder if latents else None
        self.unit_range = latents is not None and latents.unit_range
        for name, value in _per_channel(latents).items():
            self.register_buffer(name, value, persistent=False)

    @abstractmethod
    def predict(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Return the output of the network [n, C, h, w].

        Args:
            x: Samples [n, C, h, w], scaled as the network takes them, in its precision.
            times: Times [n] as the network takes them.
            labels: Class labels [n].
        """

    def schedule(self, steps: int) -> Schedule:
        if self.spacing == "scheduler":
            assert self.own_schedule is not None
            return self.own_schedule(steps)
        # Uniform as the paper has it for latents: inversion ends at the level that denoising
        # starts from, so that one undoes the other. `respaced` would end in pure noise, one level
        # above.
        return {"uniform": uniform, "karras": karras}[self.spacing](self.alpha_bar, steps)

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        level = Level.of(alpha_bar_at(self.levels, t), x)
        inputs, times = self.parametrisation.inputs(x, t, level)
        output = self.predict(inputs.to(self.dtype), times, labels)
        # a learned variance in further channels is not needed by DDIM with eta = 0
        output = at_least_float32(output[:, : x.shape[1]])
        return self.parametrisation.eps(output, x, level)

    def description(self) -> dict[str, Any]:
        scale, shift = self.latent_scale.flatten().tolist(), self.latent_shift.flatten().tolist()
        return {
            "parametrisation": repr(self.parametrisation),
            "latents": [scale, shift, self.unit_range],
            "resizing": [self.process_method, self.antialias],
        }

    def encode(self, images: Tensor) -> Tensor:
        images = self.to_model_size(images)
        if self.autoencoder is None:
            return images
        if self.unit_range:
            images = (images + 1) / 2
        encoded = self.autoencoder.encode(images.to(self.dtype))
        # the mode, as a sample of the posterior would make scores random
        latents = encoded.latents if self._is_vq else encoded.latent_dist.mode()
        latents = at_least_float32(latents)
        return (latents - self.latent_shift.to(latents)) * self.latent_scale.to(latents)

    def decode(self, x: Tensor) -> Tensor:
        if self.autoencoder is None:
            return self.to_input_size(x)
        latents = x / self.latent_scale.to(x) + self.latent_shift.to(x)
        if self._is_vq:
            images = decode_vq(self.autoencoder, latents, self.dtype)
        else:
            images = at_least_float32(self.autoencoder.decode(latents.to(self.dtype)).sample)
        if self.unit_range:
            images = images * 2 - 1
        return self.to_input_size(images.clamp(-1, 1))

    @property
    def _is_vq(self) -> bool:
        return type(self.autoencoder).__name__ == "VQModel"


def load_autoencoder(folder: Path, channels: int) -> Any:
    """Load the autoencoder of a network that diffuses this number of channels.

    Raises:
        InputError: A file is missing or damaged, or the latents have other channels.
    """
    autoencoder = load_diffusers(AUTOENCODERS, folder)
    config = autoencoder.config
    latents = config.latent_channels
    if type(autoencoder).__name__ == "VQModel":
        latents = config.vq_embed_dim or config.latent_channels
    if latents != channels:
        raise InputError(
            f"checkpoint {folder}: its latents have {latents} channels, but the network takes "
            f"{channels}; choose the autoencoder that the network was trained with"
        )
    return autoencoder


def _per_channel(latents: Latents | None) -> dict[str, Tensor]:
    """Return scale and shift as tensors [1 or C, 1, 1] in float64."""
    scale, shift = (latents.scale, latents.shift) if latents else (1.0, 0.0)
    return {
        name: torch.tensor(value, dtype=torch.float64).view(-1, 1, 1)
        for name, value in (("latent_scale", scale), ("latent_shift", shift))
    }
