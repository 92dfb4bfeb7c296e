"""The precision of what the networks return."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if it has a narrower type (float16, bfloat16), else unchanged.

    What the networks return goes through this rather than ``Tensor.float``, so that a model in
    float64 (``diffguard.double()``, float64 images) computes in float64 from end to end.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
