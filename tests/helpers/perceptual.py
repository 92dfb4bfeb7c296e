"""Weights that piq would download for DISTS and LPIPS, at random."""

from pathlib import Path

import torch
from torchvision.models import vgg16


def save_perceptual_weights(folder: Path) -> Path:
    """Save them where torch looks, if TORCH_HOME is this folder; return the folder."""
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in vgg16().state_dict().items()}

    # Weights of the convolutions as Kaiming He initialises them; the linear layers are not used.
    vgg = {}
    for key, shape in shapes.items():
        vgg[key] = torch.zeros(()).expand(shape)
        if key.startswith("features") and len(shape) == 4:
            scale = (2 / shape[1:].numel()) ** 0.5
            vgg[key] = torch.randn(shape, generator=generator) * scale
    torch.save(vgg, checkpoints / "vgg16-397923af.pth")

    # 3 + 64 + 128 + 256 + 512 + 512 channels
    alpha, beta = torch.rand(2, 1, 1475, 1, 1, generator=generator)
    torch.save({"alpha": alpha, "beta": beta}, checkpoints / "dists_weights.pt")
    channels = (64, 128, 256, 512, 512)
    lpips = [torch.rand(1, count, 1, 1, generator=generator) for count in channels]
    torch.save(lpips, checkpoints / "lpips_weights.pt")
    return folder
