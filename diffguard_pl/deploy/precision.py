"""Numerical precision of a deployed detector, whatever its caller has set."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..dtypes import allow_tf32

HALF_PRECISIONS = {
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
}
"""Precisions, by Lightning's names, in which the networks compute in a 16-bit type."""
PRECISIONS = ["32-true", *HALF_PRECISIONS]

_compute_lock = threading.RLock()
"""Precision flags and the networks' hooks are global state, so threads take turns."""


@contextmanager
def computing_in(precision: str, tf32: bool, device: torch.device) -> Iterator[None]:
    """Compute in a given precision and without gradients, one thread at a time.

    Args:
        precision: One of `PRECISIONS`.
        tf32: Whether float32 products on a GPU may round their factors to TF32.
        device: Device of the networks.
    """
    is_mixed = precision.endswith("-mixed")
    dtype = HALF_PRECISIONS[precision] if is_mixed else None
    # Disabled autocast overrides that of the caller.
    autocast = torch.autocast(device.type, dtype, enabled=is_mixed)
    with _compute_lock, allow_tf32(tf32), torch.no_grad(), autocast:
        yield
