"""Contract of a diffusion model: encode, decode, and the noise prediction eps(x, t, labels)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ..diffusion.schedule import Schedule
from ..errors import InputError, choose

COMPILED_BLOCKS = ("ResnetBlock2D", "Attention", "Transformer2DModel", "BasicTransformerBlock")
"""Classes of diffusers whose modules take nearly all of a network's time."""
IMAGENET_CLASSES = 1000
MAX_COMPILED_VARIANTS = 64
"""Limit on the compiled variants (kinds of block, batch sizes) of one module's code."""


class Backbone(nn.Module, ABC):
    """A frozen diffusion model.

    Args:
        image_size: Side, in pixels, of the images that the model was trained on.
        input_size: Side, in pixels, of the images under test. Defaults to ``image_size``.
        process_method: How images get from ``input_size`` to ``image_size``: ``resize``, or ``pad``
            with a black border.
        antialias: Whether resizing is antialiased. Makes a difference only where images become
            smaller.

    Attributes:
        image_size: As the argument.
        input_size: As the argument.
        alpha_bar: Signal level alpha-bar [T] of the training schedule, in float64, on the CPU.
        null_label: Label that means "no class"; None if the model has none.
        num_classes: Number of classes, without "no class"; None if the model takes no label.
        class_names: Names of the classes. Defaults to ImageNet's for a model of 1,000 classes, else
            to None: unknown.
        is_pixel_space: Whether x is an image.
        clip_denoised: Whether predicted images x0 are clamped to [-1, 1].
        dtype: Precision of the networks; x, images and noise are float32 (float64 for networks in
            float64).
    """

    alpha_bar: Tensor
    null_label: int | None = None
    num_classes: int | None = None
    is_pixel_space = False
    clip_denoised = False
    given_class_names: Sequence[str] | None = None

    def __init__(
        self,
        image_size: int,
        input_size: int | None,
        process_method: str,
        antialias: bool = True,
    ):
        super().__init__()
        choose("process_method", process_method, ["resize", "pad"])
        self.image_size = image_size
        self.input_size = input_size or image_size
        self.process_method = process_method
        self.antialias = antialias
        difference = self.image_size - self.input_size
        if process_method == "pad" and (difference < 0 or difference % 2):
            raise InputError(
                f"input_size: {self.input_size} cannot be padded evenly to image_size="
                f"{image_size}; set process_method to resize"
            )

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes; None if unknown."""
        if self.given_class_names is None and self.num_classes == IMAGENET_CLASSES:
            # loading torchvision's models takes a second
            from torchvision.models._meta import _IMAGENET_CATEGORIES

            return _IMAGENET_CATEGORIES
        return self.given_class_names

    # ---- what a model implements

    @abstractmethod
    def schedule(self, steps: int) -> Schedule:
        """Return the timesteps and signal levels of DDIM with this number of steps."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Map images to what is diffused.

        Args:
            images: Images [N, 3, H, W] of ``input_size``, in [-1, 1].

        Returns:
            Samples x [N, C, h, w]: images of ``image_size``, or latents.
        """

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Map what is diffused back to images; the inverse of :meth:`encode`.

        Args:
            x: Samples [N, C, h, w].

        Returns:
            Images [N, 3, H, W] of ``input_size``, approximately in [-1, 1].
        """

    @abstractmethod
    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Predict the noise [n, C, h, w] in x; each sample counts as one NFE.

        Args:
            x: Noisy samples [n, C, h, w].
            t: Training timesteps [n], integers in [0, T).
            labels: Class labels [n]; ignored by a model that takes no label.
        """

    def description(self) -> dict[str, Any]:
        """Return settings that eps, encode or decode depend on besides the weights, as JSON."""
        return {}

    def use_classes(self, names: Sequence[str] | None, count: int) -> None:
        """Take over the classifier's classes, where the model's labels are made of their names.

        Args:
            names: Names of the classes; None if unknown.
            count: Number of classes.
        """
        return

    def respaced_schedule(self, timestep_respacing: str | int) -> Schedule:
        """Return the schedule of a ``timestep_respacing`` in the notation of guided-diffusion.

        Raises:
            InputError: The model does not support it, or the text is of another form.
        """
        raise InputError(
            f"timestep_respacing: {type(self).__name__} does not support it; set it to null and "
            "use steps"
        )

    @property
    def denoiser(self) -> nn.Module:
        """Network that :meth:`eps` evaluates. A model overrides this to support ``compile``."""
        return self

    # ---- image sizes

    def to_model_size(self, images: Tensor) -> Tensor:
        """Resize or pad images [N, 3, H, W] from ``input_size`` to ``image_size``."""
        if self.input_size == self.image_size:
            return images
        if self.process_method == "resize":
            return self._resize(images, self.image_size)
        return pad(images, [self._border] * 4, value=-1.0)

    def to_input_size(self, images: Tensor) -> Tensor:
        """Resize or crop images [N, 3, H, W] from ``image_size`` to ``input_size``."""
        if self.input_size != self.image_size and self.process_method == "resize":
            return self._resize(images, self.input_size)
        return self.remove_padding(images)

    def remove_padding(self, images: Tensor) -> Tensor:
        """Remove the border that padding added; return resized images unchanged."""
        if self.input_size == self.image_size or self.process_method == "resize":
            return images
        border, side = self._border, self.input_size
        return images[..., border : border + side, border : border + side]

    def _resize(self, images: Tensor, size: int) -> Tensor:
        return interpolate(images, (size, size), mode="bilinear", antialias=self.antialias)

    @property
    def _border(self) -> int:
        """Width of the border that padding adds, in pixels."""
        return (self.image_size - self.input_size) // 2

    # ---- precision and compilation

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks."""
        for parameter in self.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
        return torch.float32

    def networks_to(self, dtype: torch.dtype) -> None:
        """Convert the weights of the networks to another precision."""
        for network in self.children():
            # not the override in diffusers, which warns without need
            nn.Module.to(network, dtype)

    def compile_blocks(self) -> None:
        """Compile the network block by block, for each batch size that occurs.

        Blocks of one class share their compiled code, so this takes a fraction of the time that
        compiling the whole network would.
        """
        # importing it takes a second
        import torch._dynamo

        if self.denoiser is self:
            raise InputError(
                f"compile: {type(self).__name__} does not support it; override denoiser"
            )

        # the limit was called cache_size_limit before torch 2.6
        config = torch._dynamo.config
        for name in ("recompile_limit", "cache_size_limit"):
            if hasattr(config, name):
                setattr(config, name, max(MAX_COMPILED_VARIANTS, getattr(config, name)))
        for block in compilable_blocks(self.denoiser):
            block.compile(dynamic=False)


def compilable_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the outermost modules of the classes ``COMPILED_BLOCKS``, else the network itself."""
    return _outermost_blocks(network) or [network]


def _outermost_blocks(module: nn.Module) -> list[nn.Module]:
    if type(module).__name__ in COMPILED_BLOCKS:
        return [module]
    found = []
    for child in module.children():
        found += _outermost_blocks(child)
    return found
