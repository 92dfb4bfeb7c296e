"""Networks of EDM and EDM2 in miniature: shapes of their files, and random weights for them."""

import json
from pathlib import Path

import torch
from torch import Tensor

REFERENCE = Path(__file__).parent.parent / "reference" / "edm_networks.json"
"""Shapes of the state dicts of NVIDIA's modules, and what they predict with :func:`weights` on
:func:`inputs`: recorded by running NVlabs/edm (008a4e5) and NVlabs/edm2 with these weights."""
SIGMAS = (0.01, 1.0, 40.0)
LABELS = (0, 4, 2)
CLASSES = 5


def reference() -> dict:
    """Return shapes and outputs by the name of the network."""
    return json.loads(REFERENCE.read_text())


def weights(shapes: dict[str, list[int]], magnitude_preserving: bool) -> dict[str, Tensor]:
    """Return random weights in the layout of a file."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for key in sorted(shapes):
        shape = shapes[key]
        if key.endswith("resample_filter"):
            taps = torch.tensor([1.0, 1.0] if shape[-1] == 2 else [1.0, 3.0, 3.0, 1.0])
            found[key] = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
            continue
        drawn = torch.randn(shape, generator=generator)
        if magnitude_preserving or key.endswith("freqs"):
            found[key] = drawn
        elif len(shape) > 1:
            found[key] = drawn * drawn[0].numel() ** -0.5
        else:
            found[key] = 1 + 0.2 * drawn if key.endswith("weight") else 0.1 * drawn
    return found


def inputs(channels: int, side: int) -> tuple[Tensor, Tensor]:
    """Return what a network is given: c_in x [3, C, side, side] and ln(sigma) / 4 [3]."""
    x = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor(SIGMAS).log() / 4


def save(folder: Path, name: str) -> Path:
    """Save the state dict of a network of the reference, as the owner of a pickle would."""
    path = folder / f"{name}.pt"
    torch.save(weights(reference()[name]["shapes"], name.startswith("edm2")), path)
    return path


def save_for(folder: Path, file: str, name: str, classes: int) -> Path:
    """Save a network of the reference with another number of classes, under another name."""
    shapes = reference()[name]["shapes"]
    found = weights(shapes, name.startswith("edm2"))
    for key, tensor in found.items():
        if key.endswith(("map_label.weight", "emb_label.weight")):
            generator = torch.Generator().manual_seed(2)
            found[key] = torch.randn(len(tensor), classes, generator=generator)
    torch.save(found, folder / file)
    return folder / file
