"""Fits to the features of in-distribution images: z-scores, a Gaussian mixture, kernel densities.

They are evaluated in float64 from a few tensors, which a detector file keeps. Features are
standardised by the mean and standard deviation of the fitted ones.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError

Z_SCORE = ("centre", "spread")
"""Names of the tensors of a z-score."""
MIXTURE = (*Z_SCORE, "log_weights", "means", "precisions")
"""Names of the tensors of a mixture."""
KERNELS = (*Z_SCORE, "points")
"""Names of the tensors of kernel densities."""
COMPONENTS = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of components that cross-validation chooses from."""
IMAGES_PER_COMPONENT = 20
"""Number of images that each component needs at least."""
FOLDS = 3
MIN_IMAGES = 30
"""Number of images that a density is fitted to at least."""


def fit_z_score(features: Tensor, name: str) -> dict[str, Tensor]:
    """Return mean and standard deviation of features [N, F]."""
    complete = complete_rows(features, name)
    spread = complete.std(dim=0, correction=0)
    return {"centre": complete.mean(dim=0), "spread": torch.where(spread > 0, spread, 1.0)}


def z_score(features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
    """Return features [N, F] less their mean, over their standard deviation."""
    return (features - fitted["centre"]) / fitted["spread"]


def fit_mixture(
    features: Tensor, components: int | None, name: str, diagonal: bool = False
) -> dict[str, Tensor]:
    """Fit a mixture of Gaussians.

    Args:
        features: [N, F].
        components: Number of components. None: that of :data:`COMPONENTS` with the highest
            likelihood of images that it was not fitted to, in three folds.
        name: Name of the score, for errors.
        diagonal: Whether the covariances are diagonal; else they are full.

    Returns:
        The tensors of :data:`MIXTURE`.

    Raises:
        InputError: The images do not suffice.
    """
    from sklearn.mixture import GaussianMixture

    standard = fit_z_score(features.double().cpu(), name)
    values = z_score(complete_rows(features.double().cpu(), name), standard).numpy()
    if components is None:
        components = _choose_components(values)
    elif components * IMAGES_PER_COMPONENT > len(values):
        raise InputError(
            f"path_scores: {name}: {components} components need at least "
            f"{components * IMAGES_PER_COMPONENT} images to fit to, not {len(values)}; lower them"
        )
    kind = "diag" if diagonal else "full"
    mixture = GaussianMixture(components, covariance_type=kind, random_state=0).fit(values)
    found = {
        "log_weights": np.log(mixture.weights_),
        "means": mixture.means_,
        "precisions": mixture.precisions_cholesky_,
    }
    return standard | {key: torch.from_numpy(value) for key, value in found.items()}


def mixture_log_density(features: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
    """Compute the log-density [N] of features [N, F], of which each is standardised."""
    z = z_score(features, fitted)
    # |(z - m_k) P_k|^2 with P_k P_k^T the inverse covariance of component k.
    roots, deviation = fitted["precisions"], z[:, None] - fitted["means"]
    if roots.ndim == 2:  # diagonal
        whitened, log_root = deviation * roots, roots.log().sum(dim=1)
    else:
        whitened = torch.einsum("nkf,kfg->nkg", deviation, roots)
        log_root = roots.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    constant = z.shape[1] / 2 * math.log(2 * math.pi)
    of_components = log_root - whitened.square().sum(dim=2) / 2 - constant
    return (fitted["log_weights"] + of_components).logsumexp(dim=1)


def kernel_log_density(features: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    """Compute the log of a Gaussian kernel density [N] at features [N, F] of points [n, F]."""
    width = features.shape[1]
    squared = (features[:, None] - points).square().sum(dim=2) / bandwidth**2
    constant = width * (math.log(bandwidth) + math.log(2 * math.pi) / 2) + math.log(len(points))
    return (-squared / 2).logsumexp(dim=1) - constant


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


def complete_rows(features: Tensor, name: str) -> Tensor:
    """Return the features [n, F] of images that took all the steps.

    Raises:
        InputError: There are too few of them.
    """
    complete = features[features.isfinite().all(dim=1)]
    if len(complete) < MIN_IMAGES:
        raise InputError(
            f"path_scores: {name}: {len(complete)} of {len(features)} images to fit to took all "
            f"its steps; must be at least {MIN_IMAGES}; lower its steps, or give more images"
        )
    return complete


def _choose_components(values: np.ndarray) -> int:
    """Choose the number of components by cross-validation."""
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import KFold, cross_val_score

    folds = KFold(FOLDS, shuffle=True, random_state=0)
    trained_on = len(values) * (FOLDS - 1) // FOLDS
    possible = [count for count in COMPONENTS if count * IMAGES_PER_COMPONENT <= trained_on] or [1]
    likelihood = {
        count: cross_val_score(GaussianMixture(count, random_state=0), values, cv=folds).mean()
        for count in possible
    }
    return max(likelihood, key=lambda count: likelihood[count])
