"""Scores of the classifier alone, from the pass that DiffGuard makes anyway: what a detector has to beat.

Definitions and defaults are those of OpenOOD v1.5 (Zhang et al. 2023, arXiv 2306.09301), whose ImageNet configuration is the one
that it has for all data sets; ``entropy`` it does not have. Higher = more in-distribution.

    score        paper                            hyper-parameters                 computed by
    msp          Hendrycks & Gimpel, ICLR 2017    -                                pytorch-ood
    max_logit    Hendrycks et al., ICML 2022      -                                pytorch-ood
    energy       Liu et al., NeurIPS 2020         temperature 1                    pytorch-ood
    entropy      Chan et al., ICCV 2021           -                                ours (theirs clips at 1e-7)
    gen          Liu et al., CVPR 2023            gamma 0.1, M 100                 ours (theirs clips at 1e-7, takes means)
    odin         Liang et al., ICLR 2018          temperature 1000, noise 0.0014   ours (theirs leaves pixels without gradient)
    react        Sun et al., NeurIPS 2021         percentile 90                    pytorch-ood, the percentile ours
    ash          Djurisic et al., ICLR 2023       percentile 90, ASH-B             pytorch-ood
    scale        Xu et al., ICLR 2024             percentile 85                    pytorch-ood
    knn          Sun et al., ICML 2022            K 50                             ours (theirs is scikit-learn's, on the CPU)
    vim          Wang et al., CVPR 2022           dim 256                          ours (theirs copies all features, in float32)
    mahalanobis  Lee et al., NeurIPS 2018         -                                ours (theirs is of unscaled covariances)
    rmds         Ren et al., 2021                 -                                ours (as above)

All are fitted to the same images, those of training; OpenOOD takes react's percentile over its validation images.
pytorch-ood is imported at the first score: it takes half a second, for it imports all of itself.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from ...classifiers.classifier import Classifier, View
from ...errors import InputError, choose
from .names import BASELINES, DEFAULT_BASELINES

NAMES = list(BASELINES)
DEFAULT = list(DEFAULT_BASELINES)
NEEDS_FIT = frozenset({"react", "knn", "vim", "mahalanobis", "rmds"})
NEEDS_LABELS = frozenset({"mahalanobis", "rmds"})
NEEDS_HEAD = frozenset({"react", "ash", "scale", "vim"})

ROWS = 8192
"""Features that are worked on at a time where there may be a million."""


class Parameter(NamedTuple):
    """A hyper-parameter: its default, and which values there are."""

    default: float | None
    allowed: Callable[[float], bool]
    expected: str
    kind: type = float


def _positive(default: float) -> Parameter:
    return Parameter(default, lambda value: value > 0, "a number above 0")


def _count(default: int | None) -> Parameter:
    return Parameter(
        default,
        lambda value: value >= 1 and float(value).is_integer(),
        "a whole number, 1 or more",
        int,
    )


PARAMETERS: dict[str, dict[str, Parameter]] = {
    "energy": {"temperature": _positive(1.0)},
    "gen": {"gamma": _positive(0.1), "M": _count(100)},
    "odin": {
        "temperature": _positive(1000.0),
        "noise": Parameter(0.0014, lambda value: value >= 0, "0 or more, of pixels in [0, 1]"),
    },
    "react": {"percentile": Parameter(90.0, lambda value: 0 <= value <= 100, "0 to 100")},
    "ash": {"percentile": Parameter(90.0, lambda value: 0 <= value < 100, "0 or more, below 100")},
    "scale": {
        "percentile": Parameter(85.0, lambda value: 0 <= value < 100, "0 or more, below 100")
    },
    "knn": {"K": _count(50)},
    "vim": {"dim": _count(None)},
}

FITTED = {
    "react": ("react_percentile", "react_threshold"),
    "knn": ("knn_bank",),
    "vim": ("vim_origin", "vim_residual", "vim_alpha"),
    "mahalanobis": ("centre", "class_whitening", "class_means"),
    "rmds": ("centre", "class_whitening", "class_means", "background_whitening"),
}
"""The tensors that each score is fitted to."""


class Baselines(nn.Module):
    """Any number of scores of the classifier alone.

    Args:
        names: see ``NAMES``; or a mapping from name to hyper-parameters by OpenOOD's names, such as ``{"knn": {"K": 20}}``, None
            or those not given standing for the defaults in the module's docstring. vim's ``dim`` is 256 by default, and half the
            number of features where they are no more than that.
        classifier: the classifier under protection. ``react``, ``ash``, ``scale`` and ``vim`` need one whose logits are a linear
            function of its features.

    Attributes:
        names: of the scores.
        hyperparameters: of each.
        needs_fit: whether any score is fitted to training images.
    """

    react_percentile: Tensor
    react_threshold: Tensor
    knn_bank: Tensor
    vim_origin: Tensor
    vim_residual: Tensor
    vim_alpha: Tensor
    centre: Tensor
    class_whitening: Tensor
    class_means: Tensor
    background_whitening: Tensor

    def __init__(
        self,
        names: Sequence[str] | Mapping[str, Mapping[str, float] | None],
        classifier: Classifier,
    ):
        super().__init__()
        if isinstance(names, str) or len(set(names)) < len(names):
            raise InputError(
                f"baselines {names!r}: expected a list of names, each once; there are: {', '.join(NAMES)}"
            )
        self.names = list(names)
        given = names if isinstance(names, Mapping) else dict.fromkeys(names)
        self.hyperparameters: dict[str, dict[str, Any]] = {
            name: _parameters(name, given[name]) for name in self.names
        }
        self.needs_fit = any(name in NEEDS_FIT for name in self.names)
        self._classifier = (
            classifier,
        )  # in a tuple, so that its weights are no part of this module
        for buffer in {buffer for name in self.names for buffer in FITTED.get(name, ())}:
            self.register_buffer(buffer, None)
        if any(name in NEEDS_HEAD for name in self.names):
            self._check_head()

    @property
    def fitted(self) -> bool:
        """Whether every score that is fitted to training images has been."""
        return not self._unfitted()

    @torch.no_grad()
    def forward(self, view: View, images: Tensor) -> dict[str, Tensor]:
        """The scores [N] by name, in float32, of what the classifier made of images.

        Args:
            view: of the images.
            images: [N, 3, H, W] in [0, 1]; only odin looks at them, in two passes of its own.
        """
        if unfitted := self._unfitted():
            raise InputError(
                f"baselines {', '.join(unfitted)}: not fitted to training images yet; set data.train, or call DiffGuard.fit"
            )
        scores = {}
        with torch.autocast(view.logits.device.type, enabled=False):
            for name in self.names:
                if name == "odin":  # of its two passes, TF32 is as of all others
                    scores[name] = odin(self._classifier[0], images, **self.hyperparameters[name])
                    continue
                with _without_tf32():
                    scores[name] = getattr(self, f"_{name}")(
                        view.logits.float(), view.features.float(), **self.hyperparameters[name]
                    ).float()
        return scores

    @torch.no_grad()
    def fit_features(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Fit to the classifier's views of training images. The features may be many: they are read in parts.

        Args:
            features: [N, D] in float16 or float32.
            logits: [N, classes].
            labels: [N], -1 where unknown; mahalanobis and rmds need all of them.
        """
        self._check_fit(features, logits, labels)
        with torch.inference_mode(False):
            for buffer, value in self._fit(features, logits, labels).items():
                setattr(self, buffer, value.to(self._classifier[0].mean.device).contiguous())

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        fitted: dict[str, Tensor] = {}
        if "react" in self.names:
            percent = self.hyperparameters["react"]["percentile"]
            fitted |= {
                "react_percentile": torch.tensor(float(percent)),
                "react_threshold": percentile(features, percent),
            }
        if "knn" in self.names:
            fitted["knn_bank"] = torch.empty(
                features.shape, dtype=torch.half if features.dtype == torch.half else torch.float
            )
            for part, into in zip(
                features.split(ROWS), fitted["knn_bank"].split(ROWS), strict=True
            ):
                into.copy_(normalised(part.float()))
        if not {"vim", *NEEDS_LABELS} & set(self.names):
            return fitted
        by_class = bool(NEEDS_LABELS & set(self.names))
        device = self._classifier[0].mean.device
        device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        moments = Moments.of(features, labels if by_class else torch.zeros_like(labels), device)
        if by_class:
            whitening = whiten(moments.within / len(features))
            if not whitening.shape[1]:
                raise InputError(
                    f"baselines: the {len(features)} images to fit to have the mean features of their classes; "
                    "give more of each class"
                )
            fitted |= {"centre": moments.mean.float(), "class_whitening": whitening.float()}
            fitted["class_means"] = ((moments.means - moments.mean) @ whitening).float()
        if "rmds" in self.names:
            fitted["background_whitening"] = whiten(moments.total() / len(features)).float()
        if "vim" in self.names:
            fitted |= self._fit_vim(features, logits, moments)
        return fitted

    def _fit_vim(self, features: Tensor, logits: Tensor, moments: "Moments") -> dict[str, Tensor]:
        weight, bias = (part.to(moments.mean.device).double() for part in self._head())
        origin = -torch.linalg.pinv(weight) @ bias
        shift = moments.mean - origin
        _, directions = torch.linalg.eigh(
            moments.total() / len(features) + torch.outer(shift, shift)
        )
        residual = directions[
            :, : len(origin) - self.hyperparameters["vim"]["dim"]
        ]  # the principal ones come last
        norms, sizes = torch.zeros((), dtype=torch.double), torch.zeros((), dtype=torch.double)
        for part in features.split(ROWS):
            centred = part.to(origin.device).double() - origin
            norms += (centred @ residual).norm(dim=1).sum().cpu()
            sizes += centred.norm(dim=1).sum().cpu()
        if norms <= 1e-6 * sizes:
            raise InputError(
                f"baseline vim: nothing of the {len(features)} images' features lies outside their "
                f"{self.hyperparameters['vim']['dim']} principal directions; give more images or a smaller dim"
            )
        alpha = logits.double().amax(dim=1).sum().cpu() / norms
        return {
            "vim_origin": origin.float(),
            "vim_residual": residual.float(),
            "vim_alpha": alpha.float(),
        }

    def _msp(self, logits: Tensor, features: Tensor) -> Tensor:
        from pytorch_ood.detector import MaxSoftmax

        return -MaxSoftmax.score(logits)

    def _max_logit(self, logits: Tensor, features: Tensor) -> Tensor:
        from pytorch_ood.detector import MaxLogit

        return -MaxLogit.score(logits)

    def _energy(self, logits: Tensor, features: Tensor, temperature: float) -> Tensor:
        from pytorch_ood.detector import EnergyBased

        return -EnergyBased.score(logits, temperature)

    def _entropy(self, logits: Tensor, features: Tensor) -> Tensor:
        return -torch.special.entr(logits.softmax(dim=1)).sum(dim=1)

    def _gen(self, logits: Tensor, features: Tensor, gamma: float, M: int) -> Tensor:
        p = logits.softmax(dim=1).sort(dim=1).values[:, -M:]
        return -(p**gamma * (1 - p) ** gamma).sum(dim=1)

    def _react(self, logits: Tensor, features: Tensor, percentile: float) -> Tensor:
        from pytorch_ood.detector import ReAct

        return -ReAct(None, self._from_maps, threshold=self.react_threshold).predict_feature_maps(
            features[:, :, None, None]
        )

    def _ash(self, logits: Tensor, features: Tensor, percentile: float) -> Tensor:
        from pytorch_ood.detector import ASH

        return -ASH(
            None, self._from_maps, "ash-b", _share(features, percentile)
        ).predict_feature_maps(features[:, :, None, None])

    def _scale(self, logits: Tensor, features: Tensor, percentile: float) -> Tensor:
        from pytorch_ood.detector import SCALE

        score = -SCALE(None, self._from_maps, _share(features, percentile)).predict_feature_maps(
            features[:, :, None, None]
        )
        # features that are all zero, or all negative, may have no finite scale: they stay as they are
        return torch.where(score.isfinite(), score, logits.logsumexp(dim=1))

    def _knn(self, logits: Tensor, features: Tensor, K: int) -> Tensor:
        return -kth_distance(normalised(features), self.knn_bank, K)

    def _vim(self, logits: Tensor, features: Tensor, dim: int) -> Tensor:
        energy = linear(features, *self._head()).logsumexp(dim=1)
        return energy - self.vim_alpha * ((features - self.vim_origin) @ self.vim_residual).norm(
            dim=1
        )

    def _mahalanobis(self, logits: Tensor, features: Tensor) -> Tensor:
        whitened = (features - self.centre) @ self.class_whitening
        # differences first: where classes have collapsed, squares of what is far from the centre would leave nothing of them
        return (
            -torch.cdist(whitened, self.class_means, compute_mode="donot_use_mm_for_euclid_dist")
            .amin(dim=1)
            .square()
        )

    def _rmds(self, logits: Tensor, features: Tensor) -> Tensor:
        background = ((features - self.centre) @ self.background_whitening).square().sum(dim=1)
        return self._mahalanobis(logits, features) + background

    def _head(self) -> tuple[Tensor, Tensor]:
        head = self._classifier[0].linear_head()
        assert head is not None  # _check_head has seen to it
        return head

    def _from_maps(self, maps: Tensor) -> Tensor:
        """Feature maps [N, D, 1, 1] -> logits [N, classes]."""
        return linear(maps.flatten(1), *self._head())

    def _unfitted(self) -> list[str]:
        return [
            name
            for name in self.names
            if any(getattr(self, buffer) is None for buffer in FITTED.get(name, ()))
        ]

    def _check_head(self) -> None:
        """That features and head give the logits, of a grey image and of a ramp; and that it fits the hyper-parameters."""
        needing = ", ".join(name for name in self.names if name in NEEDS_HEAD)
        classifier = self._classifier[0]
        head = classifier.linear_head()
        if head is None:
            raise InputError(
                f"baselines {needing}: the classifier has no linear layer that gives its logits; leave them out"
            )
        size, device = classifier.input_size, classifier.mean.device
        ramp = torch.linspace(0, 1, 3 * size * size, device=device).view(1, 3, size, size)
        with torch.autocast(device.type, enabled=False):
            view = classifier.view(torch.cat([torch.full_like(ramp, 0.5), ramp]))
            same_width = head[0].shape[1] == view.features.shape[1]
            error = (
                (linear(view.features, *head) - view.logits).abs().amax()
                if same_width
                else view.logits.new_tensor(math.inf)
            )
        dtype = next(classifier.model.parameters()).dtype
        if not error <= max(1e-3, 4 * torch.finfo(dtype).eps) * view.logits.abs().amax():
            raise InputError(
                f"baselines {needing}: the classifier's logits are not what its layer {' and '.join(classifier.heads)} gives of "
                "the features; leave them out"
            )
        width = view.features.shape[1]
        for name in {"ash", "scale"} & set(self.names):
            percent = self.hyperparameters[name]["percentile"]
            if width == round(width * percent / 100):
                raise InputError(
                    f"baseline {name}: percentile={percent}: leaves none of the {width} features; give less"
                )
        if "vim" in self.names:
            default = 256 if width > 256 else max(1, width // 2)
            dim = self.hyperparameters["vim"]["dim"] = self.hyperparameters["vim"]["dim"] or default
            if dim >= width:
                raise InputError(
                    f"baseline vim: dim={dim}: expected less than the number of features, {width}"
                )

    def _check_fit(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        classifier = self._classifier[0]
        if (
            features.ndim != 2
            or logits.shape != (len(features), classifier.num_classes)
            or labels.shape != features.shape[:1]
        ):
            raise InputError(
                f"baselines: features {list(features.shape)}, logits {list(logits.shape)}, labels {list(labels.shape)}; expected "
                f"[N, D], [N, {classifier.num_classes}], [N]"
            )
        if not len(features):
            raise InputError("baselines: no images to fit to; give some")
        head = classifier.linear_head()
        if (
            head is not None
            and any(name in NEEDS_HEAD for name in self.names)
            and features.shape[1] != head[0].shape[1]
        ):
            raise InputError(
                f"baselines: {features.shape[1]} features an image; the classifier has {head[0].shape[1]}"
            )
        for what, values in {"features": features, "logits": logits}.items():
            if bad := sum(int((~part.isfinite()).any(dim=1).sum()) for part in values.split(ROWS)):
                raise InputError(
                    f"baselines: {what} of {bad} images are NaN or infinite; look at the images, or use float32"
                )
        if "knn" in self.names and self.hyperparameters["knn"]["K"] > len(features):
            raise InputError(
                f"baseline knn: K={self.hyperparameters['knn']['K']}, and there are {len(features)} images to fit to; "
                "give more images or a smaller K"
            )
        needing = [name for name in self.names if name in NEEDS_LABELS]
        if not needing:
            return
        outside = int(((labels < 0) | (labels >= classifier.num_classes)).sum())
        if labels.is_floating_point() or outside:
            raise InputError(
                f"baselines {', '.join(needing)}: need the label of every image to fit to, 0 to {classifier.num_classes - 1}; "
                f"{outside} of {len(labels)} have none; give a labelled set, or leave these scores out"
            )
        missing = (
            (torch.bincount(labels.flatten(), minlength=classifier.num_classes) == 0)
            .nonzero()
            .flatten()
            .tolist()
        )
        if missing:
            some = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
            raise InputError(
                f"baselines {', '.join(needing)}: no image to fit to of {len(missing)} of {classifier.num_classes} classes: "
                f"{some}; give images of every class, or leave these scores out"
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Make room for what was fitted, whose size only the state knows."""
        for buffer in {buffer for name in self.names for buffer in FITTED.get(name, ())}:
            if (value := state_dict.get(prefix + buffer)) is not None:
                setattr(
                    self, buffer, torch.empty_like(value, device=self._classifier[0].mean.device)
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._check_loaded()

    def _check_loaded(self) -> None:
        """That what was loaded was fitted with these hyper-parameters."""
        fitted = set(self.names) - set(self._unfitted())
        if "react" in fitted and not math.isclose(
            self.react_percentile, self.hyperparameters["react"]["percentile"], rel_tol=1e-6
        ):
            raise InputError(
                f"baseline react: was fitted with percentile={float(self.react_percentile):g}; give that, or fit again"
            )
        if "knn" in fitted and len(self.knn_bank) < self.hyperparameters["knn"]["K"]:
            raise InputError(
                f"baseline knn: was fitted to {len(self.knn_bank)} images; give a smaller K, or fit again"
            )
        if (
            "vim" in fitted
            and self.vim_residual.shape[0] - self.vim_residual.shape[1]
            != self.hyperparameters["vim"]["dim"]
        ):
            dim = self.vim_residual.shape[0] - self.vim_residual.shape[1]
            raise InputError(f"baseline vim: was fitted with dim={dim}; give that, or fit again")


class Moments(NamedTuple):
    """First and second moments of features by class, in float64.

    Attributes:
        counts: [classes].
        means: of each class [classes, D].
        mean: of all [D].
        within: sum [D, D] of outer products of what is left of features without the mean of their class.
    """

    counts: Tensor
    means: Tensor
    mean: Tensor
    within: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, device: torch.device) -> "Moments":
        """Of features [N, D] and their classes [N], in two passes over the parts of them."""
        labels = labels.long().cpu()
        counts = torch.bincount(labels).double()
        sums = torch.zeros(len(counts), features.shape[1], dtype=torch.double)
        for part, classes in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            sums.index_add_(
                0, classes, part.cpu().double()
            )  # on the CPU, where the order of a sum is fixed
        means, mean = (
            (sums / counts[:, None]).to(device),
            (sums.sum(dim=0) / len(features)).to(device),
        )
        within = torch.zeros(
            features.shape[1], features.shape[1], dtype=torch.double, device=device
        )
        for part, classes in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            centred = part.to(device).double() - means[classes.to(device)]
            within.addmm_(centred.T, centred)
        return cls(counts.to(device), means, mean, within)

    def total(self) -> Tensor:
        """As ``within``, of what is left without the mean of all."""
        between = self.means - self.mean
        return self.within + (between.T * self.counts) @ between


def logit_baselines(logits: Tensor) -> dict[str, Tensor]:
    """The scores of :data:`DEFAULT`, each [N], of logits [N, classes]."""
    from pytorch_ood.detector import EnergyBased, MaxLogit, MaxSoftmax

    return {
        "msp": -MaxSoftmax.score(logits),
        "max_logit": -MaxLogit.score(logits),
        "energy": -EnergyBased.score(logits),
    }


def odin(classifier: Classifier, images: Tensor, temperature: float, noise: float) -> Tensor:
    """Maximum softmax probability [N] at a temperature, of images moved towards what the classifier sees (Liang et al., eq. 1-2).

    OpenOOD moves normalised images by noise / std, which is ``noise`` of a pixel in [0, 1], and does not clamp them. As there,
    pixels without a gradient move down.
    """
    with torch.inference_mode(False), torch.enable_grad():
        images = classifier.fit(images.detach().clone()).detach().requires_grad_()
        logits = classifier.logits(images).float()
        loss = cross_entropy(logits / temperature, logits.argmax(dim=1), reduction="sum")
        # the sign is all that matters, and times the temperature gradients do not vanish in float16
        (gradient,) = torch.autograd.grad(temperature * loss, images)
    with torch.no_grad():
        moved = images.detach() - noise * torch.where(gradient >= 0, 1.0, -1.0)
        return (classifier.logits(moved).float() / temperature).softmax(dim=1).amax(dim=1)


def normalised(features: Tensor) -> Tensor:
    """Features [N, D] of length 1; those that are all zero stay so. 1e-10 is OpenOOD's."""
    return (
        features / features.norm(dim=1, keepdim=True).clamp(min=torch.finfo(features.dtype).tiny)
        + 1e-10
    )


def kth_distance(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Squared distance [N] of queries [N, D] to the k-th nearest in a bank [M, D]."""
    nearness = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), ROWS):
        part = bank[start : start + ROWS].float()
        near = queries @ part.T - part.square().sum(dim=1) / 2  # less |query|^2 / 2, alike for all
        rows = torch.arange(start, start + len(part), device=queries.device).expand(
            len(queries), -1
        )
        nearness, best = torch.cat([nearness, near], dim=1).topk(
            min(k, nearness.shape[1] + len(part)), dim=1
        )
        index = torch.cat([index, rows], dim=1).gather(1, best)
    # from differences, for of |a|^2 - 2ab + |b|^2 little is left where a and b are close
    return (queries - bank[index[:, -1]].float()).square().sum(dim=1)


def whiten(covariance: Tensor) -> Tensor:
    """W [D, r] with W W^T the pseudo-inverse of a covariance [D, D] of rank r: |x W|^2 is the Mahalanobis distance.

    The cutoff of the rank is scipy's ``pinvh``'s, which scikit-learn and so OpenOOD take.
    """
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] / values[kept].sqrt()


def percentile(values: Tensor, percent: float) -> Tensor:
    """``np.percentile`` of all values, in float32, exact and without a copy of them."""
    place = percent / 100 * (values.numel() - 1)
    low, high = (ranked(values, rank) for rank in (math.floor(place), math.ceil(place)))
    return torch.tensor(low + (high - low) * (place - math.floor(place)))


def ranked(values: Tensor, rank: int) -> float:
    """The value that comes at ``rank`` (0, ...) in ascending order: its upper 16 bits counted out first, then its lower ones."""
    upper = 0
    for half in ("upper", "lower"):
        counts = torch.zeros(1 << 16, dtype=torch.long)
        for part in values.split(ROWS):
            bits = part.float().reshape(-1).view(torch.int32)
            keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + (
                1 << 31
            )  # in the order of the floats
            keys = keys >> 16 if half == "upper" else keys[keys >> 16 == upper] & 0xFFFF
            counts += torch.bincount(keys, minlength=1 << 16).cpu()
        ends = counts.cumsum(dim=0)
        found = int(torch.searchsorted(ends, rank, right=True))
        rank -= int(ends[found] - counts[found])
        upper, key = (found, 0) if half == "upper" else (upper, (upper << 16) + found)
    bits = np.int64(key - (1 << 31)).astype(np.int32)
    return float((bits if bits >= 0 else bits ^ np.int32(0x7FFFFFFF)).view(np.float32))


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Matrix products in full float32: after whitening, what TF32 rounds off would outweigh the smallest directions."""
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, False
    try:
        yield
    finally:
        products.allow_tf32 = before


def _share(features: Tensor, percent: float) -> float:
    """Of features to drop: a whole number of them, rounded as OpenOOD does, whatever pytorch-ood makes of the share."""
    width = features.shape[1]
    return round(width * percent / 100) / width


def _parameters(name: str, given: Mapping[str, float] | None) -> dict[str, Any]:
    """All hyper-parameters of a score: those given, and the defaults of the others, or of those that are None."""
    choose("baseline", name, NAMES)
    known, given = PARAMETERS.get(name, {}), {} if given is None else given
    if not isinstance(given, Mapping):
        raise InputError(
            f"baseline {name}: {given!r}; expected hyper-parameters by name, or nothing"
        )
    values: dict[str, Any] = {parameter: of.default for parameter, of in known.items()}
    for parameter, value in given.items():
        if not known:
            raise InputError(f"baseline {name}: has no hyper-parameters; {parameter} is not one")
        choose(f"hyper-parameter of baseline {name}", parameter, list(known))
        if value is None:
            continue
        is_number = (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
        if not is_number or not known[parameter].allowed(value):
            raise InputError(
                f"baseline {name}: {parameter}={value}; expected {known[parameter].expected}"
            )
        values[parameter] = known[parameter].kind(value)
    return values
