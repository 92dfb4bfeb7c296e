"""guided-diffusion's classifier of noisy images, which the paper compares with (Fig. 2).

It is the encoder of guided-diffusion's UNet with an attention pool at its end (its class
``EncoderUNetModel``; Dhariwal & Nichol 2021), so it is hosted in the same layers of diffusers.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from ..checkpoints.architectures import NoisyClassifierArchitecture
from ..checkpoints.converted import known_architecture
from ..checkpoints.registry import PUBLISHED, find_published, resolve
from ..checkpoints.state_dicts import OriginalTensor
from ..dtypes import at_least_float32
from ..errors import InputError
from .base import Backbone
from .convert_guided_diffusion import (
    UNET_KEYS,
    build_guided_diffusion,
    convert_unet_keys,
    split_qkv,
)
from .load import (
    RANDOM,
    ConvertedWeights,
    find_original,
    load_converted,
    with_random_weights,
    without_weights,
)

SETTINGS = {
    r"^conv_out\.c_proj": "architecture.num_classes",
    r"^conv_out": "architecture.image_size and num_head_channels",
    r"^conv_in|^time_embedding": "architecture.classifier_width",
    r"attentions": "architecture.classifier_attention_resolutions",
    r".": "architecture.channel_mult and classifier_depth",
}
"""The setting that decides whether a key fits, by a regular expression of the key."""


class NoisyClassifier(nn.Module):
    """A frozen classifier that was trained on noisy images and takes their timestep.

    Args:
        checkpoint: A guided-diffusion ``.pt`` such as ``256x256_classifier.pt``; a name or a URL
            (see :func:`diffguard_pl.checkpoints.registry.resolve`); or ``random`` for a dry run
            with random weights.
        architecture: guided-diffusion's flags of the file. Defaults to those of the named weights,
            else to those of ``256x256_classifier.pt``.

    Attributes:
        image_size: Side, in pixels, of the images that it takes.
        num_classes: Number of classes.
    """

    def __init__(self, checkpoint: str, architecture: NoisyClassifierArchitecture | None = None):
        super().__init__()
        a = architecture or _known_architecture(checkpoint)
        self.image_size, self.num_classes = a.image_size, a.num_classes

        # The encoder of the UNet, without weights, on the meta device.
        unet = build_guided_diffusion(a.unet)
        self.conv_in = unet.conv_in
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.down_blocks, self.mid_block = unet.down_blocks, unet.mid_block
        channels = a.classifier_width * a.channel_mult[-1]
        side = a.image_size >> (len(a.channel_mult) - 1)
        with without_weights():
            self.conv_norm_out = nn.GroupNorm(32, channels)
            self.conv_out = AttentionPool(channels, side, a.num_head_channels, a.num_classes)

        if checkpoint == RANDOM:
            with_random_weights(self)
        else:
            self._load(checkpoint, a)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Compute logits [N, classes], in float32.

        Args:
            x: Images [N, 3, H, W] of ``image_size`` in [-1, 1], with the noise of their timestep.
            t: Training timesteps [N], integers in [0, T). Defaults to 0, that of clean images.
        """
        if t is None:
            t = torch.zeros(len(x), dtype=torch.long, device=x.device)
        x = x.to(self.conv_in.weight.dtype)
        embedding = self.time_embedding(self.time_proj(t).to(x.dtype))
        x = self.conv_in(x)
        for block in self.down_blocks:
            x, _ = block(x, embedding)
        x = self.mid_block(x, embedding)
        return at_least_float32(self.conv_out(silu(self.conv_norm_out(x))))

    def _load(self, checkpoint: str, architecture: NoisyClassifierArchitecture) -> None:
        path = resolve(checkpoint)
        if path.is_dir():
            raise InputError(
                f"checkpoint {path}: is a folder; expected guided-diffusion's .pt file"
            )
        found = find_original(path, UNET_KEYS, use_ema=True)
        weights = convert_unet_keys(found.tensors, architecture.unet)
        weights = split_qkv(weights, self, new_order=False)
        load_converted(self, _linear_pool(weights), path, SETTINGS)


class AttentionPool(nn.Module):
    """Pooling by attention: the query is the mean over all positions (Radford et al. 2021).

    Args:
        channels: Number of channels C.
        side: Side of the feature maps.
        num_head_channels: Number of channels per attention head.
        num_classes: Number of outputs.
    """

    def __init__(self, channels: int, side: int, num_head_channels: int, num_classes: int):
        super().__init__()
        self.num_head_channels = num_head_channels
        self.positional_embedding = nn.Parameter(torch.empty(channels, side**2 + 1))
        self.qkv_proj = nn.Linear(channels, 3 * channels)
        self.c_proj = nn.Linear(channels, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool feature maps [N, C, side, side] to outputs [N, num_classes]."""
        # Tokens [N, 1 + side * side, C]: the mean first, then every position.
        positions = maps.flatten(2)
        tokens = torch.cat([positions.mean(dim=2, keepdim=True), positions], dim=2)
        tokens = (tokens + self.positional_embedding).transpose(1, 2)

        # Heads [N, heads, tokens, channels per head]. Only the first token is needed afterwards.
        heads = self.qkv_proj(tokens).unflatten(2, (3, -1, self.num_head_channels))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        pooled = scaled_dot_product_attention(q[:, :, :1], k, v)
        return self.c_proj(pooled.flatten(1))


def noisy_classifier_for(
    backbone: Backbone, classifier: nn.Module | str | None
) -> nn.Module | None:
    """Return the classifier for noisy images of a diffusion model; None stays None.

    Args:
        backbone: Diffusion model whose noisy images are classified.
        classifier: Checkpoint for :class:`NoisyClassifier`, or the module itself.

    Raises:
        InputError: The model diffuses no images, or the classifier takes images of another size.
    """
    if classifier is None:
        return None
    if not backbone.is_pixel_space:
        raise InputError(
            f"analysis.noisy_classifier: {type(backbone).__name__} diffuses latents, not images; "
            "choose a config with a pixel-space model"
        )
    if isinstance(classifier, str):
        try:
            classifier = NoisyClassifier(classifier)
        except InputError as error:
            raise InputError(f"analysis.noisy_classifier: {error}") from error
    size = classifier.image_size if isinstance(classifier, NoisyClassifier) else None
    if size not in (None, backbone.image_size):
        raise InputError(
            f"analysis.noisy_classifier: takes images of {size} pixels, those of the diffusion "
            f"model have {backbone.image_size}; choose another one"
        )
    return classifier.eval().requires_grad_(False)


def _known_architecture(checkpoint: str) -> NoisyClassifierArchitecture:
    published = find_published(checkpoint)
    if published and not isinstance(published.architecture, NoisyClassifierArchitecture):
        names = [
            name
            for name, other in PUBLISHED.items()
            if isinstance(other.architecture, NoisyClassifierArchitecture)
        ]
        raise InputError(
            f"checkpoint: {published.name} ({published.description}) is no classifier of noisy "
            f"images; choose from: {', '.join(names)}"
        )
    known = known_architecture(checkpoint, NoisyClassifierArchitecture)
    return known or NoisyClassifierArchitecture()


def _linear_pool(weights: ConvertedWeights) -> ConvertedWeights:
    """Turn the pool's 1-d convolutions of kernel size 1 into the linear layers that they are."""
    linear = dict(weights)
    for key, (original_key, tensor) in weights.items():
        if key in ("conv_out.qkv_proj.weight", "conv_out.c_proj.weight") and tensor.ndim == 3:
            linear[key] = OriginalTensor(original_key, tensor.squeeze(-1))
    return linear
