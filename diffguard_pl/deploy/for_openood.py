"""OpenOOD (Yang et al. 2022, Zhang et al. 2023): its CIFAR classifier, for its checkpoints, and DiffGuard as a method of its v1.5.

method = DiffGuardPostprocessor("detector.json", CIFAR10.mean, CIFAR10.std)
Evaluator(net, id_name="cifar10", postprocessor=method).eval_ood()

OpenOOD is not on PyPI and nothing here needs it; ``pip install git+https://github.com/Jingkang50/OpenOOD`` for the evaluator.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from ..errors import InputError
from .detector import Detector

ROUNDING = 0.02
"""How far out of [0, 1] an image may be whose normalisation was taken back, in half precision say."""


class DiffGuardPostprocessor:
    """A detector where OpenOOD's ``Evaluator`` takes a postprocessor. Where OpenOOD is installed it is one of its own, too.

    It scores by its own classifier, so that has to be the ``net`` that is evaluated; predictions are that classifier's.

    Args:
        detector: or the file of one. One that has no threshold yet gets it from the in-distribution validation set, and baselines
            that are to be fitted are fitted to the training set.
        mean: of each channel, that the evaluator's preprocessor subtracts.
        std: of each channel, that it divides by.
    """

    config = None
    args_dict: dict[str, list[Any]] = {}  # noqa: RUF012  hyper-parameters to search: none
    APS_mode = False
    hyperparam_search_done = True

    def __new__(cls, *_: Any, **__: Any) -> "DiffGuardPostprocessor":
        try:
            from openood.postprocessors import BasePostprocessor  # the evaluator takes no other
        except ImportError:
            return super().__new__(cls)
        own = (
            cls
            if issubclass(cls, BasePostprocessor)
            else type(cls.__name__, (cls, BasePostprocessor), {})
        )
        return super().__new__(own)

    def __init__(
        self, detector: Detector | str | Path, mean: Sequence[float], std: Sequence[float]
    ):
        self.detector = detector if isinstance(detector, Detector) else Detector.load(detector)
        self.mean, self.std = mean, std

    def setup(
        self, net: nn.Module, id_loader_dict: Mapping[str, Any], ood_loader_dict: Mapping[str, Any]
    ) -> None:
        """Make the detector ready; no out-of-distribution image is looked at.

        Args:
            net: the classifier that is evaluated.
            id_loader_dict: loaders of ``train`` and ``val``, which are only read where they are needed, and of ``test``.
            ood_loader_dict: not used.

        Raises:
            InputError: the detector has another classifier, or images were normalised in another way.
        """
        self._check(net, next(iter(id_loader_dict["val"]))["data"])
        baselines = self.detector.model.baselines
        if baselines.needs_fit and not baselines.fitted:
            self.detector.fit_baselines(self._batches(id_loader_dict["train"]))
        if self.detector.calibrated is None:
            self.detector.calibrate(self._batches(id_loader_dict["val"]))

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Classes [N] and scores [N], higher = more in-distribution, of normalised images [N, 3, H, W]. ``net`` is not used."""
        pred, conf, _ = self.inference(
            net, [{"data": data, "label": torch.full((len(data),), -1)}], progress=False
        )
        return torch.from_numpy(pred).to(data.device), torch.from_numpy(conf).to(data.device)

    def inference(
        self, net: nn.Module, data_loader: Any, progress: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes, scores (higher = more in-distribution) and labels of a loader's images, each [N]; ``net`` is not used."""
        batches = track(data_loader, "DiffGuard", total=len(data_loader), disable=not progress)
        found = [
            (decisions.labels.numpy(), decisions.scores.numpy(), np.asarray(batch["label"]))
            for batch, decisions in self.detector.decide(self._batches(batches))
            if decisions is not None
        ]
        if not found:
            raise InputError("inference: the loader has no images")
        pred, conf, label = (np.concatenate(part) for part in zip(*found, strict=True))
        return pred.astype(int), conf, label.astype(int)

    def _batches(self, loader: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """As the detector takes them, of the evaluator's."""
        for batch in loader:
            yield {
                "image": pictures(batch["data"], self.detector, self.mean, self.std),
                "label": batch["label"],
            }

    def _check(self, net: nn.Module, data: Tensor) -> None:
        with torch.no_grad():
            device = next((weights.device for weights in net.parameters()), data.device)
            theirs = net.eval()(data.to(device)).argmax(dim=1).cpu()
            images = pictures(data, self.detector, self.mean, self.std).to(self.detector.device)
            ours = self.detector.model.classifier(images).argmax(dim=1).cpu()
        agree = int((theirs == ours).sum())
        if 2 * agree < len(data):
            raise InputError(
                f"DiffGuardPostprocessor: net and the detector's classifier agree on {agree} of {len(data)} images; give a "
                "detector of this net, and the mean and std that the preprocessor normalises by"
            )


def pictures(
    data: Tensor,
    detector: Detector,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Images [N, 3, h, w] of somebody else's loader as the detector takes them: [N, 3, H, W] in [0, 1], of its input size.

    Args:
        data: images in [0, 1], or normalised.
        detector: that prepares those of another size.
        mean, std: of each channel, that images were normalised by; none: they were not.
    """
    if (mean is None) != (std is None):
        raise InputError(
            "mean and std: only one of them was given; normalised images take both, others neither"
        )
    if mean is not None and std is not None:
        if min(std) <= 0:
            raise InputError(f"std={list(std)}: expected numbers above 0")
        of_channel = (
            torch.tensor(values, dtype=data.dtype, device=data.device).view(1, -1, 1, 1)
            for values in (mean, std)
        )
        shift, scale = of_channel
        data = data * scale + shift
        if len(data) and not (
            data.min() > -ROUNDING and data.max() < 1 + ROUNDING
        ):  # not NaN either
            raise InputError(
                f"images are from {data.min():.3g} to {data.max():.3g} when mean and std are taken back, expected [0, 1]; give "
                "those that the loader normalises by, or none"
            )
        data = data.clamp(0, 1)
    size = detector.model.input_size
    return data if data.shape[-2:] == (size, size) or len(data) == 0 else detector.prepare(data)
