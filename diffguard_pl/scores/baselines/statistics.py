"""Exact statistics of the features of a million images, read in chunks so that no copy is made."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 8192
"""Number of images whose features are processed at a time."""


def chunks(values: Tensor) -> tuple[Tensor, ...]:
    """Split a tensor of many images [N, ...] into chunks."""
    return values.split(CHUNK)


class Moments(NamedTuple):
    """First and second moments of features by class, in float64.

    Attributes:
        counts: Number of images of each class [classes].
        means: Mean of each class [classes, D].
        mean: Mean of all images [D].
        within: Scatter matrix [D, D] within classes: the sum of (x - mean of its class)(...)^T.
    """

    counts: Tensor
    means: Tensor
    mean: Tensor
    within: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, device: torch.device) -> "Moments":
        """Compute the moments of features [N, D] with classes [N] in two passes."""
        labels = labels.long().cpu()
        width = features.shape[1]

        # First pass: means. On the CPU, where the order of a sum is fixed.
        counts = torch.bincount(labels).double()
        sums = torch.zeros(len(counts), width, dtype=torch.double)
        for part, classes in zip(chunks(features), chunks(labels), strict=True):
            sums.index_add_(0, classes, part.cpu().double())
        means = (sums / counts[:, None]).to(device)
        mean = (sums.sum(dim=0) / len(features)).to(device)

        # Second pass: scatter around the means, without the cancellation of E[xx^T] - mm^T.
        within = torch.zeros(width, width, dtype=torch.double, device=device)
        for part, classes in zip(chunks(features), chunks(labels), strict=True):
            centred = part.to(device).double() - means[classes.to(device)]
            within.addmm_(centred.T, centred)
        return cls(counts.to(device), means, mean, within)

    def total(self) -> Tensor:
        """Compute the scatter matrix [D, D] around the mean of all images."""
        # Total = within classes + between the class means, weighted by the images of each.
        between = self.means - self.mean
        return self.within + (between.T * self.counts) @ between


def whiten(covariance: Tensor) -> Tensor:
    """Compute W [D, r] with W W^T the pseudo-inverse of a covariance [D, D] of rank r.

    |x W|^2 is the Mahalanobis distance. The cutoff of the rank is that of scipy's ``pinvh``, which
    scikit-learn and hence OpenOOD use.
    """
    # C = V diag(values) V^T; W = V diag(values)^(-1/2), without the null space.
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] / values[kept].sqrt()


def percentile(values: Tensor, percent: float) -> Tensor:
    """Compute ``np.percentile`` of all values in float32, exactly and without a copy of them."""
    # Linear interpolation between the two neighbouring order statistics.
    place = percent / 100 * (values.numel() - 1)
    low = ranked(values, math.floor(place))
    high = ranked(values, math.ceil(place))
    return torch.tensor(low + (high - low) * (place - math.floor(place)))


def ranked(values: Tensor, rank: int) -> float:
    """Find the value at ``rank`` (0, 1, ...) in ascending order.

    Radix selection in two passes: a histogram of the upper 16 bits finds the bin that holds the
    value, a histogram of the lower 16 bits within this bin finds the value.
    """
    upper = 0
    for half in ("upper", "lower"):
        counts = torch.zeros(1 << 16, dtype=torch.long)
        for part in chunks(values):
            keys = _sortable(part)
            keys = keys >> 16 if half == "upper" else keys[keys >> 16 == upper] & 0xFFFF
            counts += torch.bincount(keys, minlength=1 << 16).cpu()

        # The bin in which the cumulative count passes the rank.
        ends = counts.cumsum(dim=0)
        found = int(torch.searchsorted(ends, rank, right=True))
        rank -= int(ends[found] - counts[found])
        if half == "upper":
            upper = found
    return _from_sortable((upper << 16) + found)


def _sortable(values: Tensor) -> Tensor:
    """Map floats to integers [0, 2^32) of the same order: the bits, flipped where negative."""
    # Negative floats sort in reverse by their bits: flip all but the sign.
    bits = values.float().reshape(-1).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + (1 << 31)


def _from_sortable(key: int) -> float:
    """Invert :func:`_sortable`."""
    bits = np.int64(key - (1 << 31)).astype(np.int32)
    if bits < 0:
        bits ^= np.int32(0x7FFFFFFF)
    return float(bits.view(np.float32))
