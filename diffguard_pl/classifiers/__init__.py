"""Classifiers under protection: preprocessing, layers, and models by name."""

from ..imports import postpone_imports

# Most of torchvision: all its models and, by its detection layers, the compiler of torch.
postpone_imports("torchvision.datasets", "torchvision.models", "torchvision.ops")
