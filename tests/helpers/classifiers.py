"""Networks by name with random weights, and photographs for them."""

import warnings
from functools import lru_cache

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from diffguard_pl import Classifier

SMALL_NETWORKS = [
    "resnet18",
    "convnext_tiny",
    "swin_t",
    "timm/resnet18",
    "timm/convnext_atto",
    "timm/vit_tiny_patch16_224",
    "timm/deit_tiny_distilled_patch16_224",
    "timm/swin_tiny_patch4_window7_224",
]
"""A network of each family whose forward pass takes a fraction of a second."""


def random_net(name: str, **settings) -> Classifier:
    """Build a classifier by name with random weights; skip the test without timm."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Classifier(name, weights="random", **settings)


cached_net = lru_cache(maxsize=None)(random_net)


@lru_cache
def photos() -> list[Image.Image]:
    """Return two square photographs of 256 pixels."""
    return [
        Image.fromarray(picture).crop((100, 0, 527, 427)).resize((256, 256))
        for picture in load_sample_images().images
    ]


@lru_cache
def photo_tensors() -> Tensor:
    """Return the photographs as a tensor [2, 3, 256, 256] in [0, 1]."""
    return torch.stack([pil_to_tensor(photo) for photo in photos()]) / 255
