"""Small class-conditional UNets of the originals: settings, weights, and what their code computes.

To make the golden files anew, with the sources of the three repositories on PYTHONPATH:

    python -m helpers.pixel_unets
"""

import json
from math import log2, prod
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffguard_pl.backbones import DDPMArchitecture, GuidedDiffusionArchitecture
from helpers import ROOT

NUMBERS = ROOT / "tests" / "reference" / "pixel_unets.safetensors"
SHAPES = ROOT / "tests" / "reference" / "pixel_unets.json"
LABELS = 4
"""Number of labels of each UNet; the last one of DiffNB's means "no class"."""
ARCHITECTURES = {
    "diffnb_ddpm": DDPMArchitecture(
        image_size=16,
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(8,),
        num_classes=LABELS - 1,
    ),
    "diffnb_iddpm": GuidedDiffusionArchitecture(
        image_size=16,
        num_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_heads=4,
        num_head_channels=-1,
        resblock_updown=False,
        class_cond=True,
        num_classes=LABELS - 1,
        null_class=True,
        noise_schedule="cosine",
    ),
    "improved_diffusion": GuidedDiffusionArchitecture(
        image_size=16,
        num_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(16, 8),
        num_heads=2,
        num_head_channels=-1,
        resblock_updown=False,
        class_cond=True,
        num_classes=LABELS,
        noise_schedule="cosine",
        diffusion_steps=4000,
        rescale_timesteps=True,
    ),
    "guided_diffusion": GuidedDiffusionArchitecture(
        image_size=16,
        num_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_head_channels=16,
        use_new_attention_order=True,
        class_cond=True,
        num_classes=LABELS,
    ),
}
"""Architectures by the code that computes them."""


def weights_of(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Return random weights that are the same on every computer, by key.

    They are bytes divided by powers of two, so that nothing is rounded.
    """
    weights = {}
    for key, shape in shapes.items():
        drawn = bytearray(Random(key).randbytes(prod(shape)))
        numbers = torch.frombuffer(drawn, dtype=torch.int8).view(shape) / 128
        if len(shape) > 1:
            # of a layer: about 1 / sqrt(fan-in)
            weights[key] = numbers * 2.0 ** (1 - round(log2(prod(shape[1:])) / 2))
        else:
            # a bias, or the weight of a norm
            weights[key] = numbers / 4 + key.endswith("weight") * 1.0
    return weights


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of a UNet, and x, t, labels and eps as its own code computes it.

    With a label for "no class", also eps under that label, ``eps_null``.
    """
    numbers = {
        key.removeprefix(f"{name}."): tensor
        for key, tensor in load_file(NUMBERS).items()
        if key.startswith(f"{name}.")
    }
    return weights_of(json.loads(SHAPES.read_text())[name]), numbers


# ---- the originals themselves


def original(name: str) -> nn.Module:
    """Build a UNet with its own code.

    Raises:
        ImportError: The code is not on the path.
    """
    a = ARCHITECTURES[name]
    if isinstance(a, DDPMArchitecture):
        from network.ddim.ddim import Model

        return Model(None, _diffnb_settings(a))
    settings: dict[str, Any] = {
        "in_channels": 3,
        "model_channels": a.num_channels,
        "out_channels": 6,
        "num_res_blocks": a.num_res_blocks,
        "attention_resolutions": [a.image_size // side for side in a.attention_resolutions],
        "dropout": 0.1,
        "channel_mult": a.channel_mult,
        "num_classes": a.num_classes,
        "num_heads": a.num_heads,
        "use_scale_shift_norm": a.use_scale_shift_norm,
    }
    if name == "diffnb_iddpm":
        from network.iddpm.unet import UNetModel

        more = {"dims": 2, "conv_resample": True, "use_checkpoint": False}
        return UNetModel(None, settings | more | {"num_heads_upsample": a.num_heads})
    if name == "improved_diffusion":
        from improved_diffusion.unet import UNetModel

        return UNetModel(**settings)
    from guided_diffusion.unet import UNetModel

    return UNetModel(
        image_size=a.image_size,
        num_head_channels=a.num_head_channels,
        resblock_updown=a.resblock_updown,
        use_new_attention_order=a.use_new_attention_order,
        **settings,
    )


def _diffnb_settings(a: DDPMArchitecture) -> dict[str, Any]:
    """Return the section ``Model`` of a config of DiffNB."""
    own = {"type": "simple", "in_channels": 3, "out_ch": 3, "dropout": 0.1}
    shared = ("image_size", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "num_classes")
    return own | {"resamp_with_conv": True} | {name: getattr(a, name) for name in shared}


@torch.no_grad()
def computed_by(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the numbers of :func:`golden` from a UNet with the golden weights."""
    module.load_state_dict(weights_of(shapes_of(module)))
    module.eval()
    x = weights_of({f"{name}.x": [LABELS, 3, 16, 16]})[f"{name}.x"] * 8
    t, labels = torch.tensor([0, 10, 500, 999]), torch.arange(LABELS)
    a = ARCHITECTURES[name]
    time = t.float()
    if isinstance(a, GuidedDiffusionArchitecture) and a.rescale_timesteps:
        time = time * (1000 / a.diffusion_steps)
    eps = {"eps": module(x, time, y=labels)}
    if a.null_class:
        eps["eps_null"] = module(x, time, y=torch.full_like(labels, LABELS - 1))
    # channels 4 to 6, if any, are the learned variance
    eps = {key: tensor[:, :3].contiguous() for key, tensor in eps.items()}
    return {"x": x, "t": t, "labels": labels} | eps


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """Return the shape of each tensor of a module's state dict."""
    return {key: list(tensor.shape) for key, tensor in module.state_dict().items()}


def make() -> None:
    """Write the golden files."""
    shapes, numbers = {}, {}
    for name in ARCHITECTURES:
        module = original(name)
        shapes[name] = shapes_of(module)
        for key, tensor in computed_by(module, name).items():
            numbers[f"{name}.{key}"] = tensor
    save_file(numbers, NUMBERS)
    lines = (f'"{name}": {json.dumps(found)}' for name, found in shapes.items())
    SHAPES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    make()
