"""Images as files."""

from pathlib import Path

import torch
from torchvision.transforms.functional import to_pil_image


def saved(images: torch.Tensor, folder: Path, name: str) -> list[str]:
    """Images as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        to_pil_image(image).save(path)
    return [str(path) for path in paths]
