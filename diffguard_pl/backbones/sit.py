"""Backbone of SiT checkpoints (Ma et al., ECCV 2024): a transformer of flow matching on latents.

The network is that of DiT, so diffusers' ``DiTTransformer2DModel`` hosts the weights.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checkpoints.registry import resolve
from ..checkpoints.state_dicts import Entries, OriginalTensor
from ..diffusion.parametrisation import RectifiedFlow
from ..errors import InputError
from .diffusers_import import diffusers_class
from .load import ConvertedWeights, find_original, load_converted, without_weights
from .parametrised import Latents, ParametrisedBackbone, load_autoencoder
from .schedulers import scheduler_alpha_bar

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

KEYS = ("x_embedder.proj.weight", "final_layer.linear.weight")
"""Keys by which a checkpoint of DiT or SiT is recognised."""
EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder": "class_embedder",
}
"""Layers of the embedding of time and label, by their name in SiT; diffusers has them per block."""
LAYERS = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
"""Layers of a block, by their name in SiT."""
OTHERS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.linear": "proj_out_2",
    "final_layer.adaLN_modulation.1": "proj_out_1",
}
"""Layers outside of the blocks, by their name in SiT."""


class SiTDiffusion(ParametrisedBackbone):
    """A SiT (Ma et al. 2024) of class-conditional images, in its authors' checkpoint.

    It predicts the velocity on the linear path (1 - s) x0 + s eps. The file describes its
    architecture except for the number of heads.

    Args:
        checkpoint: A file such as ``SiT-XL-2-256.pt``; or a name or a URL (see
            :func:`diffguard_pl.checkpoints.registry.resolve`).
        vae: Folder of the autoencoder, ``stabilityai/sd-vae-ft-ema`` for SiT's own.
        num_heads: Number of attention heads. Defaults to that of SiT-XL (16), or to one for each 64
            channels (SiT-S, B and L).
        spacing: Distances of the steps: ``uniform`` in time, or ``karras``.
        input_size: Side, in pixels, of the images under test. Defaults to the model's own size.
        process_method: How images get to the model's size: ``resize`` or ``pad``.
        clip_denoised: Whether to clamp predicted latents x0 to [-1, 1].
        antialias: Whether resizing is antialiased.
    """

    def __init__(
        self,
        checkpoint: str,
        vae: str,
        num_heads: int | None = None,
        spacing: str = "uniform",
        input_size: int | None = None,
        process_method: str = "resize",
        clip_denoised: bool = False,
        antialias: bool = True,
    ):
        network = load_sit(resolve(checkpoint), num_heads)
        latents = Latents.of_config(load_autoencoder(resolve(vae), network.config.in_channels))
        super().__init__(
            network.config.sample_size,
            scheduler_alpha_bar({"_class_name": "FlowMatchEulerDiscreteScheduler"}),
            RectifiedFlow(time_scale=1, towards_data=True),
            latents,
            spacing,
            None,
            clip_denoised,
            input_size,
            process_method,
            antialias,
        )
        self.network = network
        # the label after the last class means "no class"
        self.null_label = self.num_classes = network.config.num_embeds_ada_norm

    @property
    def denoiser(self) -> "DiTTransformer2DModel":
        return self.network

    def description(self) -> dict[str, Any]:
        positions = f"{self.network.pos_embed.pos_embed.double().square().mean():.3g}"
        heads = self.network.config.num_attention_heads
        return super().description() | {"network": [heads, positions]}

    def predict(self, x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        return self.network(x, times, class_labels=labels).sample


def load_sit(path: Path, num_heads: int | None = None) -> "DiTTransformer2DModel":
    """Load SiT's network from a checkpoint file in its authors' layout.

    Args:
        path: The file.
        num_heads: Number of attention heads. None: that of the published model of this width.

    Raises:
        InputError: The file is damaged or of something else.
    """
    weights = find_original(path, KEYS, use_ema=True).tensors
    try:
        settings = _settings({key: list(tensor.shape) for key, (_, tensor) in weights.items()})
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"checkpoint {path}: does not fit ({error}); download it again") from error
    width = settings["attention_head_dim"]
    heads = (16 if width == 1152 else max(1, width // 64)) if num_heads is None else num_heads
    if heads < 1 or width % heads:
        raise InputError(f"num_heads={heads}: must divide the width {width} of {path}; correct it")
    settings |= {"num_attention_heads": heads, "attention_head_dim": width // heads}
    with without_weights():
        network = diffusers_class("DiTTransformer2DModel")(**settings)
    for block in network.transformer_blocks:
        # diffusers' frequencies are those of DiT but for this
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    blocks = settings["num_layers"]
    positions = weights["pos_embed"].tensor.float()
    side = settings["sample_size"] // settings["patch_size"]
    if positions.shape != (1, side**2, width) or not positions.isfinite().all():
        raise InputError(
            f"checkpoint {path}: does not fit, its pos_embed must be [1, {side**2}, {width}] of "
            "numbers; download it again"
        )
    load_converted(network, _converted(weights, blocks), path, {".": "num_heads"})
    network.pos_embed.pos_embed = positions
    return network


def _settings(shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return the settings of ``DiTTransformer2DModel`` but for the heads."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    outputs, _ = shapes["final_layer.linear.weight"]
    _, patches, _ = shapes["pos_embed"]
    labels, _ = shapes["y_embedder.embedding_table.weight"]
    if not patch:
        raise ValueError("its patches have no size")
    blocks = {int(match[1]) for key in shapes if (match := re.match(r"blocks\.(\d{1,4})\.", key))}
    if not blocks:
        raise ValueError("it has no blocks")
    return {
        "attention_head_dim": width,
        "in_channels": channels,
        "out_channels": outputs // patch**2,
        "patch_size": patch,
        "sample_size": round(patches**0.5) * patch,
        "num_layers": len(blocks),
        "num_embeds_ada_norm": labels - 1,
        "norm_eps": 1e-6,
    }


def _converted(weights: Entries, blocks: int) -> ConvertedWeights:
    """Return the weights by their key in ``DiTTransformer2DModel``."""
    found: ConvertedWeights = {}
    for key, original in weights.items():
        layer, _, name = key.rpartition(".")
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", layer):
            place = f"transformer_blocks.{match[1]}"
            if match[2] == "attn.qkv":
                parts = original.tensor.chunk(3)
                for part, tensor in zip("qkv", parts, strict=True):
                    target = f"{place}.attn1.to_{part}.{name}"
                    found[target] = OriginalTensor(original.key, tensor)
                continue
            found[f"{place}.{LAYERS.get(match[2], match[2])}.{name}"] = original
            continue
        embedder = next((e for e in EMBEDDERS if layer.startswith(e)), None)
        if embedder:
            rest = layer.removeprefix(embedder)
            for block in range(blocks):
                place = f"transformer_blocks.{block}.norm1.emb.{EMBEDDERS[embedder]}{rest}"
                found[f"{place}.{name}"] = original
        elif key != "pos_embed":
            found[f"{OTHERS.get(layer, layer)}.{name}"] = original
    return found
