"""The UNets of EDM (Karras et al., NeurIPS 2022), built from the shapes of a checkpoint's tensors.

Two families: that of Song et al. (ICLR 2021; DDPM++ and NCSN++), and that of Dhariwal & Nichol
(2021; ADM). They differ in the order of the embedding, in what it does to a block, in scales and in
the numbers of heads; DDPM++ and NCSN++ in the resampling filter and in additional paths. All of it
can be told from the names and shapes of the tensors, so no settings are needed.

Names of parameters are those of EDM's own files.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu

from ..errors import InputError, beginning

Shapes = Mapping[str, Sequence[int]]
"""Shapes of tensors by key."""
MAX_POSITIONS = 10000
CHANNELS_PER_HEAD = 64
"""Of the family of Dhariwal & Nichol and of EDM2; that of Song et al. has one head."""
ORDER_DOWN = ("conv", "down", "aux_down", "aux_skip", "aux_residual", "block")
ORDER_UP = ("in0", "in1", "up", "block", "aux_up", "aux_norm", "aux_conv")
"""Kinds of layers of one resolution, in the order of their evaluation."""


class EDMUNet(nn.Module):
    """A UNet of EDM; a function of c_in x, ln(sigma) / 4 and the labels.

    Args:
        shapes: Shapes of the parameters and buffers by their keys.

    Attributes:
        num_classes: Number of classes; None if the network takes no label.
        channels: Number of channels of x.
    """

    def __init__(self, shapes: Shapes):
        super().__init__()
        down = layers_of(shapes, "enc", ORDER_DOWN, largest_first=True)
        up = layers_of(shapes, "dec", ORDER_UP, largest_first=False)
        first, block = (f"enc.{name}" for name in down[:2])
        self.channels = shapes[f"{first}.weight"][1]

        # Dhariwal & Nichol's embedding scales and shifts; Song et al.'s is added.
        width = shapes[f"{block}.conv0.weight"][0]
        self.scales = shapes[f"{block}.affine.weight"][0] == 2 * width

        # Embedding of the time and of the labels.
        self.fourier = "map_noise.freqs" in shapes
        if self.fourier:
            self.map_noise = Frequencies(shapes["map_noise.freqs"])
        self.map_layer0 = _linear(shapes, "map_layer0")
        self.map_layer1 = _linear(shapes, "map_layer1")
        self.map_label = _linear(shapes, "map_label") if "map_label.weight" in shapes else None
        self.num_classes = None if self.map_label is None else self.map_label.in_features

        # Down and up.
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        for names, side, layers in ((down, "enc", self.enc), (up, "dec", self.dec)):
            for name in names:
                layers[name] = self._layer(shapes, f"{side}.{name}", name)
        if "out_norm.weight" in shapes:
            self.out_norm = _group_norm(shapes["out_norm.weight"][0], self._eps)
            self.out_conv = Convolution(shapes, "out_conv")

    @property
    def _eps(self) -> float:
        return 1e-5 if self.scales else 1e-6

    def _layer(self, shapes: Shapes, key: str, name: str) -> nn.Module:
        if name.endswith("aux_norm"):
            return _group_norm(shapes[f"{key}.weight"][0], self._eps)
        mode = next((mode for mode in ("up", "down") if name.endswith(mode)), "keep")
        if name.endswith("aux_residual"):
            return Convolution(shapes, key, "down", fused=True)
        if name.endswith("conv") or "aux" in name:
            return Convolution(shapes, key, mode)
        return Block(shapes, key, mode, self.scales, self._eps)

    def forward(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Return the output [n, C, H, W].

        Args:
            x: [n, C, H, W].
            times: [n].
            labels: Weights [n, classes] of the classes: one-hot, or zeros for "no class".
        """
        embedding = self._embed(times.float(), labels.to(x.dtype))
        skips: list[Tensor] = []
        beside = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                beside = layer(beside)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(beside)
            elif name.endswith("aux_residual"):
                x = skips[-1] = beside = (x + layer(beside)) * 0.5**0.5
            else:
                x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
                skips.append(x)

        image: Tensor | None = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                image = layer(image)
            elif name.endswith("aux_norm"):
                normed = silu(layer(x))
            elif name.endswith("aux_conv"):
                added = layer(normed)
                image = added if image is None else image + added
            else:
                if x.shape[1] != layer.channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, embedding)
        return self.out_conv(silu(self.out_norm(x))) if image is None else image

    def _embed(self, times: Tensor, labels: Tensor) -> Tensor:
        """Return the embedding [n, D] of times [n] in float32 and labels [n, classes]."""
        if self.fourier:
            angles = times[:, None] * (2 * torch.pi * self.map_noise.freqs.float())
            parts = [angles.sin(), angles.cos()]
        else:
            half = self.map_layer0.in_features // 2
            last = half if self.scales else half - 1
            powers = torch.arange(half, device=times.device, dtype=torch.float32) / last
            angles = times[:, None] * (1 / MAX_POSITIONS) ** powers
            parts = [angles.cos(), angles.sin()] if self.scales else [angles.sin(), angles.cos()]
        found = torch.cat(parts, dim=1).to(labels.dtype)

        if self.map_label is None:
            return silu(self.map_layer1(silu(self.map_layer0(found))))
        if self.scales:
            found = self.map_layer1(silu(self.map_layer0(found)))
            return silu(found + self.map_label(labels))
        found = found + self.map_label(labels * self.map_label.in_features**0.5)
        return silu(self.map_layer1(silu(self.map_layer0(found))))


class Frequencies(nn.Module):
    """Random frequencies of Fourier features."""

    freqs: Tensor

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.register_buffer("freqs", torch.empty(tuple(size)))


class Block(nn.Module):
    """A residual block, with attention where the checkpoint has its tensors.

    Args:
        shapes: Shapes of all tensors.
        key: Beginning of the block's keys.
        mode: ``keep``, ``down`` or ``up``.
        scales: Whether the embedding scales and shifts, as Dhariwal & Nichol's; else it is added.
        eps: Of the group normalisation.
    """

    def __init__(self, shapes: Shapes, key: str, mode: str, scales: bool, eps: float):
        super().__init__()
        out, self.channels = shapes[f"{key}.conv0.weight"][:2]
        self.scales, self.skip_scale = scales, 1.0 if scales else 0.5**0.5
        self.norm0 = _group_norm(self.channels, eps)
        self.conv0 = Convolution(shapes, f"{key}.conv0", mode)
        self.affine = _linear(shapes, f"{key}.affine")
        self.norm1 = _group_norm(out, eps)
        self.conv1 = Convolution(shapes, f"{key}.conv1")
        has_skip = mode != "keep" or f"{key}.skip.weight" in shapes
        self.skip = Convolution(shapes, f"{key}.skip", mode) if has_skip else None
        self.heads = 0
        if f"{key}.qkv.weight" in shapes:
            self.heads = out // CHANNELS_PER_HEAD if scales else 1
            self.norm2 = _group_norm(out, eps)
            self.qkv = Convolution(shapes, f"{key}.qkv")
            self.proj = Convolution(shapes, f"{key}.proj")

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the output [n, C', H', W'] of x [n, C, H, W] and embeddings [n, D]."""
        before = x
        x = self.conv0(silu(self.norm0(x)))
        shift = self.affine(embedding)[:, :, None, None]
        if self.scales:
            scale, shift = shift.chunk(2, dim=1)
            x = silu(self.norm1(x) * (scale + 1) + shift)
        else:
            x = silu(self.norm1(x + shift))
        x = self.conv1(x)
        x = (x + (before if self.skip is None else self.skip(before))) * self.skip_scale
        if self.heads:
            # Channels are (head, channel of the head, q or k or v).
            tokens = self.qkv(self.norm2(x)).flatten(2)
            q, k, v = tokens.unflatten(1, (self.heads, -1, 3)).permute(3, 0, 1, 4, 2)
            attended = scaled_dot_product_attention(q, k, v).transpose(2, 3)
            x = (self.proj(attended.reshape(x.shape)) + x) * self.skip_scale
        return x


class Convolution(nn.Module):
    """A convolution with resampling before it, or resampling alone.

    Args:
        shapes: Shapes of all tensors.
        key: Beginning of its keys.
        mode: ``keep``, ``down`` or ``up``.
        fused: Whether an image becomes smaller after the convolution, both without a border of
            their own (NCSN++'s additional path).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    resample_filter: Tensor

    def __init__(self, shapes: Shapes, key: str, mode: str = "keep", fused: bool = False):
        super().__init__()
        self.mode, self.fused = mode, fused
        if mode == "keep" or fused:
            shapes[f"{key}.weight"]  # a KeyError names it
        for name in ("weight", "bias"):
            shape = shapes.get(f"{key}.{name}")
            empty = None if shape is None else nn.Parameter(torch.empty(tuple(shape)))
            self.register_parameter(name, empty)
        if mode != "keep":
            size = tuple(shapes[f"{key}.resample_filter"])
            self.register_buffer("resample_filter", torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [n, C', H', W'] of x [n, C, H, W]."""
        weight = self.weight
        border = 0 if weight is None else weight.shape[-1] // 2
        if self.mode == "keep":
            assert weight is not None
            return conv2d(x, weight, self.bias, padding=border)

        taps = self.resample_filter.to(x)
        filter_border = (taps.shape[-1] - 1) // 2
        if self.fused:
            assert weight is not None
            x = conv2d(x, weight, padding=border + filter_border)
            x = each_channel(conv2d, x, taps, 0)
            return x if self.bias is None else x + self.bias[:, None, None]
        if self.mode == "up":
            x = each_channel(conv_transpose2d, x, 4 * taps, filter_border)
        else:
            x = each_channel(conv2d, x, taps, filter_border)
        return x if weight is None else conv2d(x, weight, self.bias, padding=border)


def each_channel(convolve: Callable[..., Tensor], x: Tensor, taps: Tensor, border: int) -> Tensor:
    """Convolve each channel of x [n, C, H, W] with the same filter [1, 1, k, k], stride 2."""
    channels = x.shape[1]
    repeated = taps.expand(channels, -1, -1, -1)
    return convolve(x, repeated, groups=channels, stride=2, padding=border)


def _group_norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


def _linear(shapes: Shapes, key: str) -> nn.Linear:
    out, inputs = shapes[f"{key}.weight"]
    return nn.Linear(inputs, out, bias=f"{key}.bias" in shapes)


def layers_of(shapes: Shapes, side: str, order: Sequence[str], largest_first: bool) -> list[str]:
    """Return the names of the layers of one side of a UNet in the order of their evaluation.

    They are ``RESxRES_KIND`` or ``RESxRES_KINDNUMBER``.

    Args:
        shapes: Shapes of all tensors.
        side: ``enc`` or ``dec``.
        order: Kinds of layers of one resolution, in order.
        largest_first: Whether the largest resolution comes first.

    Raises:
        InputError: A layer is of another kind, or there is none.
    """
    places: dict[str, tuple[int, int, int]] = {}
    for key in shapes:
        if not key.startswith(f"{side}."):
            continue
        name = key.split(".")[1]
        match = re.fullmatch(r"(\d{1,5})x\1_([a-z_]+?(?:(?<=in)\d)?)(\d{0,4})", name)
        if not match or match[2] not in order:
            raise InputError(f"its layer {beginning(key)} is unknown")
        side_length = int(match[1])
        place = -side_length if largest_first else side_length
        places[name] = place, order.index(match[2]), int(match[3] or 0)
    if len(places) < 2:
        raise InputError(f"it has no layers {side}.RESxRES_block0")
    return sorted(places, key=lambda name: places[name])
