"""TODO."""

from typing import Any

import torch
from pytorch_lightning.plugins.precision import Precision


class NetworksInHalf(Precision):
    """Lightning's ``bf16-true`` and ``16-true`` for the networks alone: Lightning's own rounds images and arithmetic, too."""

    def __init__(self, precision: str):
        self.precision = precision  # type: ignore[assignment]

    def convert_module(self, module: Any) -> Any:
        module.diffguard.networks_to(
            torch.bfloat16 if self.precision == "bf16-true" else torch.float16
        )
        return module
