"""What the detector wants of a diffusion model."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import center_crop, resize

from ..diffusion.schedule import Schedule
from ..errors import InputError, choose

BLOCKS = ("ResnetBlock2D", "Attention", "Transformer2DModel", "BasicTransformerBlock")
"""Of diffusers' networks: nearly all of their time is spent in these."""
KINDS_OF_BLOCK = 64


def blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost modules of these kinds; the whole network where it has none."""
    if type(network).__name__ in BLOCKS:
        return [network]
    found = [
        block
        for child in network.children()
        for block in blocks(child)
        if type(block).__name__ in BLOCKS
    ]
    return found or [network]


class Backbone(nn.Module, ABC):
    """A frozen diffusion model.

    Attributes:
        image_size: side of the images that it was trained on.
        input_size: side of the images that it is given.
        alpha_bar: signal level [T] of the training schedule, in float64, on the CPU.
        null_label: the label that means "no class"; None where the model has none.
        num_classes: classes that it knows, "no class" left out; None where it takes none.
        is_pixel_space: whether x is an image.
        clip_denoised: whether predicted pictures are clamped to [-1, 1].
        dtype: of the networks; x, images and noise are float32 (float64 for networks in float64).
    """

    alpha_bar: Tensor
    null_label: int | None = None
    num_classes: int | None = None
    is_pixel_space = False
    clip_denoised = False

    def __init__(self, image_size: int, input_size: int | None, process_method: str):
        super().__init__()
        choose("process_method", process_method, ["resize", "pad"])
        self.image_size, self.input_size, self.process_method = (
            image_size,
            input_size or image_size,
            process_method,
        )
        if (
            process_method == "pad"
            and not 0 <= self.image_size - self.input_size == 2 * self._border
        ):
            raise InputError(
                f"input_size={self.input_size} cannot be padded evenly to image_size={image_size}; use process_method: resize"
            )

    @property
    def dtype(self) -> torch.dtype:
        return next(
            (weights.dtype for weights in self.parameters() if weights.is_floating_point()),
            torch.float32,
        )

    def networks_to(self, dtype: torch.dtype) -> None:
        """Weights of the networks in another precision."""
        for network in self.children():
            nn.Module.to(network, dtype)  # diffusers' own warns of nothing

    @property
    def denoiser(self) -> nn.Module:
        """The network that :meth:`eps` asks."""
        return self

    def compile_blocks(self) -> None:
        """Compile the blocks that the network is made of, each for the sizes that it meets: blocks that are alike share code, which
        takes a fraction of the time that the whole network would."""
        import torch._dynamo  # takes a second

        if self.denoiser is self:
            raise InputError(
                f"compile: {type(self).__name__} does not say which is its network; give it a property denoiser"
            )

        for name in (
            "recompile_limit",
            "cache_size_limit",
        ):  # of old releases; as many kinds of block as a network has
            if hasattr(torch._dynamo.config, name):
                setattr(
                    torch._dynamo.config,
                    name,
                    max(KINDS_OF_BLOCK, getattr(torch._dynamo.config, name)),
                )
        for block in blocks(self.denoiser):
            block.compile(dynamic=False)

    @abstractmethod
    def schedule(self, steps: int) -> Schedule:
        """The time steps that DDIM visits."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [-1, 1] -> x [N, C, h, w], what is diffused."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """x [N, C, h, w] -> images [N, 3, H, W], about [-1, 1]."""

    @abstractmethod
    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The noise [n, C, h, w] in x [n, C, h, w] at training time steps t [n] under labels [n]: one network row each."""

    def to_model_size(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] of ``input_size`` -> of ``image_size``."""
        if self.input_size == self.image_size:
            return images
        if self.process_method == "resize":
            return resize(images, [self.image_size, self.image_size], antialias=True)
        return pad(images, [self._border] * 4, value=-1.0)

    def to_input_size(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] of ``image_size`` -> of ``input_size``."""
        if self.input_size != self.image_size and self.process_method == "resize":
            return resize(images, [self.input_size, self.input_size], antialias=True)
        return self.crop(images)

    def crop(self, images: Tensor) -> Tensor:
        """Without the border that padding added."""
        if self.input_size == self.image_size or self.process_method == "resize":
            return images
        return center_crop(images, [self.input_size, self.input_size])

    @property
    def _border(self) -> int:
        return (self.image_size - self.input_size) // 2
