"""Baselines that measure how far features x [N, D] are from those of the training images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ..hyperparameters import count
from .base import Baseline, Inputs, TrainingFeatures, linear_head
from .statistics import chunks, whiten


@dataclass(frozen=True)
class KNN(Baseline):
    """Negative squared distance to the K-th nearest training image, of normalised features.

    Sun et al., ICML 2022. pytorch-ood's runs scikit-learn's neighbours on the CPU.

    Args:
        K: Number of neighbours. Defaults to 50.
    """

    name = "knn"
    needs = frozenset({"features", "training features"})
    tensors = ("knn_bank",)
    K: int = count(50)

    def fit(self, training: TrainingFeatures) -> dict[str, Tensor]:
        features = training.features
        if len(features) < self.K:
            raise InputError(
                f"baselines: knn: K={self.K} must be at most the number of training images, "
                f"{len(features)}; use more images or a smaller K"
            )
        # A bank of a million images is kept in the precision of the features.
        dtype = torch.half if features.dtype == torch.half else torch.float
        bank = torch.empty(features.shape, dtype=dtype)
        for part, into in zip(chunks(features), chunks(bank), strict=True):
            into.copy_(normalised(part.float()))
        return {"knn_bank": bank}

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        return -kth_distance(normalised(inputs.features), fitted["knn_bank"], self.K)

    def check_fitted(self, fitted: Mapping[str, Tensor]) -> None:
        if len(fitted["knn_bank"]) < self.K:
            raise InputError(
                f"baselines: knn: K={self.K} must be at most {len(fitted['knn_bank'])}, the number "
                "of images to which it was fitted; set a smaller K, or fit again"
            )


@dataclass(frozen=True)
class ViM(Baseline):
    """Virtual-logit matching: log sum_k exp(z_k) - alpha |R^T (x - o)| (Wang et al., CVPR 2022).

    o = -W^+ b is the origin; R are the directions of the training features beyond the ``dim``
    principal ones around o; alpha is the mean maximum logit over the mean |R^T (x - o)| of the
    training images. pytorch-ood's computes in float32, with a copy of all features.

    Args:
        dim: Number of principal directions, below D. Defaults to 256, or to D / 2 if D <= 256.
    """

    name = "vim"
    needs = frozenset({"logits", "features", "head", "training features"})
    tensors = ("vim_origin", "vim_residual", "vim_alpha")
    dim: int | None = count(None)

    def for_width(self, width: int) -> "ViM":
        if self.dim is None:
            return replace(self, dim=256 if width > 256 else max(1, width // 2))
        if self.dim >= width:
            raise InputError(
                f"baselines: vim: dim={self.dim} must be below the number of features, {width}"
            )
        return self

    def fit(self, training: TrainingFeatures) -> dict[str, Tensor]:
        features, moments = training.features, training.moments
        assert self.dim is not None

        # Origin of the feature space: where the logits are as near to 0 as can be.
        device = moments.mean.device
        weight, bias = (part.to(device).double() for part in linear_head(training.classifier))
        origin = -torch.linalg.pinv(weight) @ bias

        # Eigenvectors of the second moment around the origin; the principal ones come last.
        shift = moments.mean - origin
        second_moment = moments.total() / len(features) + torch.outer(shift, shift)
        _, directions = torch.linalg.eigh(second_moment)
        residual = directions[:, : len(origin) - self.dim]

        # Sums over the images of |R^T (x - o)| and |x - o|.
        norms = torch.zeros((), dtype=torch.double)
        lengths = torch.zeros((), dtype=torch.double)
        for part in chunks(features):
            centred = part.to(device).double() - origin
            norms += (centred @ residual).norm(dim=1).sum().cpu()
            lengths += centred.norm(dim=1).sum().cpu()
        if norms <= 1e-6 * lengths:
            raise InputError(
                f"baselines: vim: the features of the {len(features)} training images lie within "
                f"dim={self.dim} principal directions; use more images or a smaller dim"
            )
        # alpha brings the virtual logit to the scale of the maximum logit.
        alpha = training.logits.double().amax(dim=1).sum().cpu() / norms
        return {
            "vim_origin": origin.float(),
            "vim_residual": residual.float(),
            "vim_alpha": alpha.float(),
        }

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        # Energy of the logits minus the virtual logit alpha |R^T (x - o)|.
        centred = inputs.features - fitted["vim_origin"]
        virtual_logit = fitted["vim_alpha"] * (centred @ fitted["vim_residual"]).norm(dim=1)
        return inputs.energy_of(inputs.features) - virtual_logit

    def check_fitted(self, fitted: Mapping[str, Tensor]) -> None:
        width, residual = fitted["vim_residual"].shape
        if width - residual != self.dim:
            raise InputError(
                f"baselines: vim: dim={self.dim} differs from the fitted "
                f"{width - residual}; set that value, or fit again"
            )


class Mahalanobis(Baseline):
    """Negative distance to the nearest class: -min_c (x - m_c)^T S^+ (x - m_c).

    Lee et al., NeurIPS 2018. m_c are the means of the classes, S is the covariance within classes,
    and S^+ = W W^T.
    pytorch-ood's S is not divided by the number of images.
    """

    name = "mahalanobis"
    needs = frozenset({"features", "training features", "labels"})
    tensors: ClassVar[tuple[str, ...]] = ("centre", "class_whitening", "class_means")

    def fit(self, training: TrainingFeatures) -> dict[str, Tensor]:
        moments, whitening = training.moments, training.class_whitening
        # Without any spread within classes there is no direction to measure along.
        if whitening.shape[1] == 0:
            raise InputError(
                f"baselines: {self.name}: the {len(training.features)} training images equal the "
                "mean of their class; use more images of each class"
            )
        return {
            "centre": moments.mean.float(),
            "class_whitening": whitening.float(),
            "class_means": ((moments.means - moments.mean) @ whitening).float(),
        }

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        # In whitened coordinates the Mahalanobis distance is the Euclidean one.
        whitened = (inputs.features - fitted["centre"]) @ fitted["class_whitening"]
        # From differences, not |a|^2 - 2ab + |b|^2: where classes have collapsed, the squares of
        # what is far from the centre would leave nothing of them.
        distances = torch.cdist(
            whitened, fitted["class_means"], compute_mode="donot_use_mm_for_euclid_dist"
        )
        return -distances.amin(dim=1).square()


class RMDS(Mahalanobis):
    """Relative Mahalanobis distance: ``mahalanobis`` + (x - m)^T T^+ (x - m) (Ren et al., 2021).

    m and T are the mean and covariance of all training features.
    """

    name = "rmds"
    tensors = (*Mahalanobis.tensors, "background_whitening")

    def fit(self, training: TrainingFeatures) -> dict[str, Tensor]:
        # T: the covariance of all images, whatever their class.
        background = whiten(training.moments.total() / len(training.features))
        return super().fit(training) | {"background_whitening": background.float()}

    def score(self, inputs: Inputs, fitted: Mapping[str, Tensor]) -> Tensor:
        # (x - m)^T T^+ (x - m), with T^+ = W W^T.
        centred = inputs.features - fitted["centre"]
        background = (centred @ fitted["background_whitening"]).square().sum(dim=1)
        return super().score(inputs, fitted) + background


def normalised(features: Tensor) -> Tensor:
    """Scale features [N, D] to length 1; those that are all zero stay so. 1e-10 is OpenOOD's."""
    length = features.norm(dim=1, keepdim=True).clamp(min=torch.finfo(features.dtype).tiny)
    return features / length + 1e-10


def kth_distance(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Compute the squared distance [N] of queries [N, D] to the k-th nearest of a bank [M, D]."""
    # Find the k nearest by q.b - |b|^2 / 2, which falls with the distance, chunk by chunk.
    nearness = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    start = 0
    for chunk in chunks(bank):
        part = chunk.float()
        near = queries @ part.T - part.square().sum(dim=1) / 2
        rows = torch.arange(start, start + len(part), device=queries.device)
        # Keep the k best of those found so far and of this chunk.
        candidates = torch.cat([nearness, near], dim=1)
        nearness, best = candidates.topk(min(k, candidates.shape[1]), dim=1)
        index = torch.cat([index, rows.expand(len(queries), -1)], dim=1).gather(1, best)
        start += len(part)

    # The distance itself is from differences: |a|^2 - 2ab + |b|^2 cancels where a and b are close.
    return (queries - bank[index[:, -1]].float()).square().sum(dim=1)
