"""Ways to fit a score to the features of in-distribution images, for several scores."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .density import complete_rows, kernel_log_density

Z_SCORE = ("centre", "spread")
"""Names of the tensors of a z-score."""
KERNELS = ("points", "centre", "spread")
"""Names of the tensors of kernel densities."""


def fit_z_score(features: Tensor, name: str) -> dict[str, Tensor]:
    """Return mean and standard deviation of features [N, F]."""
    complete = complete_rows(features, name)
    spread = complete.std(dim=0, correction=0)
    return {"centre": complete.mean(dim=0), "spread": torch.where(spread > 0, spread, 1.0)}


def z_score(features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
    """Return features [N, F] less their mean, over their standard deviation."""
    return (features - fitted["centre"]) / fitted["spread"]


def fit_kernels(features: Tensor, name: str) -> dict[str, Tensor]:
    """Return the points of a kernel density of each feature, standardised."""
    fitted = fit_z_score(features, name)
    return fitted | {"points": z_score(complete_rows(features, name), fitted)}


def kernel_log_densities(features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
    """Return the log kernel density [N, F] of each feature on its own.

    The bandwidth is Scott's, n^(-1/5), of standardised features.
    """
    z, points = z_score(features, fitted), fitted["points"]
    bandwidth = len(points) ** -0.2
    of_each = [
        kernel_log_density(z[:, i : i + 1], points[:, i : i + 1], bandwidth)
        for i in range(z.shape[1])
    ]
    return torch.stack(of_each, dim=1)
