"""The UNet of EDM2 (Karras et al., CVPR 2024), built from the shapes of a checkpoint's tensors.

Its layers keep magnitudes: weights are normalised, sums and concatenations rescaled (the numbers of
equations are those of the paper). Weights do not change after the training, so they are normalised
once, by :func:`normalised_weights`, and the layers here are plain ones.

Names of parameters are those of EDM2's own files.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, linear, silu

from ..checkpoints.state_dicts import OriginalTensor
from .edm_network import CHANNELS_PER_HEAD, Shapes, each_channel, layers_of
from .load import ConvertedWeights

BALANCE = 0.3
"""Share of the residual branch, and of attention, in the sum with what they branch from."""
LABEL_BALANCE = CONCATENATION_BALANCE = 0.5
LARGEST_ACTIVATION = 256
EPS = 1e-4
ORDER_DOWN = ("conv", "down", "block")
ORDER_UP = ("in0", "in1", "up", "block")
"""Kinds of layers of one resolution, in the order of their evaluation."""
GAINS = {"emb_linear.weight": "emb_gain", "out_conv.weight": "out_gain"}
"""Ends of the keys of weights, and of the gain that multiplies them."""


class EDM2UNet(nn.Module):
    """The UNet of EDM2; a function of c_in x, ln(sigma) / 4 and the labels.

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

        # Embedding (figure 21): Fourier features of the time, one-hot labels.
        self.emb_fourier = Fourier(shapes["emb_fourier.freqs"])
        self.emb_noise = Convolution(shapes, "emb_noise")
        labelled = "emb_label.weight" in shapes
        self.emb_label = Convolution(shapes, "emb_label") if labelled else None
        self.num_classes = shapes["emb_label.weight"][1] if labelled else None

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        for name in down:
            is_first = name.endswith("conv")
            kind = Convolution if is_first else Block
            self.enc[name] = kind(shapes, f"enc.{name}")
        for name in up:
            self.dec[name] = Block(shapes, f"dec.{name}")
        self.out_conv = Convolution(shapes, "out_conv")
        self.channels = shapes["out_conv.weight"][0]

    def forward(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Return the output [n, C, H, W].

        Args:
            x: [n, C, H, W].
            times: [n].
            labels: Weights [n, classes] of the classes: one-hot, or zeros for "no class".
        """
        embedding = self.emb_noise(self.emb_fourier(times).to(x.dtype))
        if self.emb_label is not None:
            of_label = self.emb_label(labels.to(x.dtype) * labels.shape[1] ** 0.5)
            embedding = _sum(embedding, of_label, LABEL_BALANCE)
        embedding = _silu(embedding)

        # A constant channel takes the place of biases.
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "block" in name:
                x = _concatenation(x, skips.pop(), CONCATENATION_BALANCE)
            x = layer(x, embedding)
        return self.out_conv(x)


class Fourier(nn.Module):
    """Fourier features (equation 75), in float32 whatever the precision of the network."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, size: Sequence[int]):
        super().__init__()
        for name in ("freqs", "phases"):
            self.register_buffer(name, torch.empty(tuple(size)))

    def forward(self, times: Tensor) -> Tensor:
        """Return features [n, D] of times [n]."""
        angles = times.float()[:, None] * self.freqs.float() + self.phases.float()
        return angles.cos() * 2**0.5


class Block(nn.Module):
    """A residual block (figure 21), with attention where the checkpoint has its tensors.

    Args:
        shapes: Shapes of all tensors.
        key: Beginning of the block's keys, ``enc.`` or ``dec.`` first.
    """

    def __init__(self, shapes: Shapes, key: str):
        super().__init__()
        self.is_encoder = key.startswith("enc.")
        self.mode = next((mode for mode in ("up", "down") if key.endswith(mode)), "keep")
        self.conv_res0 = Convolution(shapes, f"{key}.conv_res0")
        self.emb_linear = Convolution(shapes, f"{key}.emb_linear")
        self.conv_res1 = Convolution(shapes, f"{key}.conv_res1")
        has_skip = f"{key}.conv_skip.weight" in shapes
        self.conv_skip = Convolution(shapes, f"{key}.conv_skip") if has_skip else None
        self.heads = 0
        if f"{key}.attn_qkv.weight" in shapes:
            self.attn_qkv = Convolution(shapes, f"{key}.attn_qkv")
            self.attn_proj = Convolution(shapes, f"{key}.attn_proj")
            self.heads = shapes[f"{key}.attn_proj.weight"][0] // CHANNELS_PER_HEAD

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the output [n, C', H', W'] of x [n, C, H, W] and embeddings [n, D]."""
        x = _resampled(x, self.mode)
        if self.is_encoder:
            x = x if self.conv_skip is None else self.conv_skip(x)
            x = _normalised(x, dim=1)

        # Residual branch.
        scale = self.emb_linear(embedding)[:, :, None, None] + 1
        branch = self.conv_res1(_silu(self.conv_res0(_silu(x)) * scale))
        if not self.is_encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = _sum(x, branch, BALANCE)

        if self.heads:
            x = _sum(x, self.attn_proj(self._attended(x)), BALANCE)
        return x.clamp(-LARGEST_ACTIVATION, LARGEST_ACTIVATION)

    def _attended(self, x: Tensor) -> Tensor:
        """Return attention [n, C, H, W], with normalised queries, keys and values."""
        # Channels are (head, channel of the head, q or k or v).
        tokens = self.attn_qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3))
        q, k, v = _normalised(tokens, dim=2).permute(3, 0, 1, 4, 2)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        return attended.transpose(2, 3).reshape(x.shape)


class Convolution(nn.Module):
    """A convolution or, with a weight [C', C], a linear layer; without a bias."""

    def __init__(self, shapes: Shapes, key: str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tuple(shapes[f"{key}.weight"])))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            return linear(x, self.weight)
        return conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)


def normalised_weights(weights: ConvertedWeights) -> ConvertedWeights:
    """Return the weights with unit magnitude for each output, times their gain, without the gains.

    Raises:
        KeyError: A gain is missing or not one number.

    Equations 47 and 66: w / (eps + |w| / sqrt(n)) * gain / sqrt(n), where n is the number of inputs
    of an output.
    """
    gains = {key for key in weights if key.rpartition(".")[2] in GAINS.values()}
    found: ConvertedWeights = {}
    for key, (original_key, tensor) in weights.items():
        if key in gains:
            continue
        if not key.endswith(".weight"):
            found[key] = OriginalTensor(original_key, tensor)
            continue
        w = tensor.float()
        root = max(1, w[:1].numel()) ** 0.5
        norm = w.flatten(1).norm(dim=1).view(-1, *[1] * (w.ndim - 1))
        scaled = w / (EPS + norm / root) / root
        for end, gain in GAINS.items():
            name = key.removesuffix(end) + gain
            if not key.endswith(end):
                continue
            if name not in weights or weights[name].tensor.ndim:
                raise KeyError(name)
            scaled = scaled * weights[name].tensor.float()
        found[key] = OriginalTensor(original_key, scaled)
    return found


def _normalised(x: Tensor, dim: int) -> Tensor:
    """Return x with unit magnitude along a dimension (equation 30)."""
    norm = x.float().norm(dim=dim, keepdim=True) / x.shape[dim] ** 0.5
    return x / (EPS + norm).to(x.dtype)


def _silu(x: Tensor) -> Tensor:
    """Equation 81."""
    return silu(x) / 0.596


def _sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Equation 88: a and b with the share of b."""
    return a.lerp(b, share) / ((1 - share) ** 2 + share**2) ** 0.5


def _concatenation(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Equation 103: the channels of a and b, with the share of b in the magnitude."""
    of_a, of_b = a.shape[1], b.shape[1]
    scale = ((of_a + of_b) / ((1 - share) ** 2 + share**2)) ** 0.5
    return torch.cat([scale * (1 - share) / of_a**0.5 * a, scale * share / of_b**0.5 * b], dim=1)


def _resampled(x: Tensor, mode: str) -> Tensor:
    """Return x [n, C, H, W] at half the size (means of 2 x 2), or twice (repeated), or as it is."""
    if mode == "keep":
        return x
    taps = x.new_full((1, 1, 2, 2), 0.25 if mode == "down" else 1.0)
    return each_channel(conv2d if mode == "down" else conv_transpose2d, x, taps, 0)
