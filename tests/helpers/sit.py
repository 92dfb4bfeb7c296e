"""SiT in miniature: shapes of its file, and random weights for it."""

import json
from pathlib import Path

import torch
from torch import Tensor

REFERENCE = Path(__file__).parent.parent / "reference" / "sit.json"
"""Shapes of a small SiT's state dict, and what it predicts with :func:`weights` on :func:`inputs`:
recorded by running willisma/SiT with these weights."""


def reference() -> dict:
    return json.loads(REFERENCE.read_text())


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Return random weights in the layout of a file."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for key in sorted(shapes):
        drawn = torch.randn(shapes[key], generator=generator)
        scale = drawn[0].numel() ** -0.5 if drawn.ndim > 1 else 0.1
        found[key] = drawn * (1 if key == "pos_embed" else scale)
    return found


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return latents [3, 4, 8, 8], times [3] and labels [3]; the last is "no class"."""
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0.02, 0.5, 0.97]), torch.tensor([0, 3, 5])


def save(folder: Path, file: str = "SiT-small.pt", classes: int = 5) -> Path:
    """Save the network in its authors' layout."""
    shapes = reference()["shapes"]
    table = "y_embedder.embedding_table.weight"
    shapes[table][0] = classes + 1
    torch.save(weights(shapes), folder / file)
    return folder / file
