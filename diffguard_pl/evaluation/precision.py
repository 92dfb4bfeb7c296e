"""Half precision of the networks under Lightning's names."""

from typing import Any

import torch
from pytorch_lightning.plugins.precision import Precision

HALF = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


class NetworksInHalf(Precision):
    """Lightning's ``bf16-true`` and ``16-true`` for the networks alone.

    Lightning's own plugin would round images, states and arithmetic, too.

    Args:
        precision: ``bf16-true`` or ``16-true``.
    """

    def __init__(self, precision: str):
        self.precision = precision  # type: ignore[assignment]

    def convert_module(self, module: Any) -> Any:
        """Convert the classifier and the diffusion model. Lightning calls this before a test."""
        module.diffguard.networks_to(HALF[str(self.precision)])
        return module
