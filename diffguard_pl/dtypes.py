"""The precision of arithmetic: what the networks return, and products in TF32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if it has a narrower type (float16, bfloat16), else unchanged.

    What the networks return goes through this rather than ``Tensor.float``, so that a model in
    float64 (``diffguard.double()``, float64 images) computes in float64 from end to end.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def allow_tf32(enabled: bool) -> Iterator[None]:
    """Set whether float32 products and convolutions use TF32; restore the switches afterwards.

    TF32 rounds the factors to 10 bits of mantissa and is several times as fast on a GPU. The
    switches are global to the process.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = enabled
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
