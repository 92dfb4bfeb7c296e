"""DiffGuard as a postprocessor of OpenOOD v1.5 (Yang et al. 2022, Zhang et al. 2023).

    postprocessor = DiffGuardPostprocessor("detector.json", CIFAR10.mean, CIFAR10.std)
    Evaluator(net, id_name="cifar10", postprocessor=postprocessor).eval_ood()

This module does not import OpenOOD, which is not on PyPI; only its ``Evaluator`` needs
``pip install git+https://github.com/Jingkang50/OpenOOD``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from .detector import Detector
from .foreign_images import images_for


class DiffGuardPostprocessor:
    """A detector in the role of an OpenOOD postprocessor.

    It uses the detector's classifier, which must be the evaluated ``net``. If OpenOOD is
    installed, instances are also instances of its ``BasePostprocessor``.

    Args:
        detector: Detector, or path of a detector file. :meth:`setup` fits unfitted baselines to the
            training set and sets a missing threshold on the in-distribution validation set.
        mean: Mean per channel that the evaluator's preprocessor subtracts.
        std: Standard deviation per channel that it divides by.
    """

    # attributes that OpenOOD's evaluator reads; there are no hyper-parameters to search
    config = None
    args_dict: dict[str, list[Any]] = {}  # noqa: RUF012
    APS_mode = False
    hyperparam_search_done = True

    def __new__(cls, *_: Any, **__: Any) -> "DiffGuardPostprocessor":
        try:
            from openood.postprocessors import BasePostprocessor
        except ImportError:
            return super().__new__(cls)
        if issubclass(cls, BasePostprocessor):
            return super().__new__(cls)
        # the evaluator accepts no other class
        derived = type(cls.__name__, (cls, BasePostprocessor), {})
        return super().__new__(derived)

    def __init__(
        self, detector: Detector | str | Path, mean: Sequence[float], std: Sequence[float]
    ):
        self.detector = detector if isinstance(detector, Detector) else Detector.load(detector)
        self.mean, self.std = mean, std

    def setup(
        self, net: nn.Module, id_loader_dict: Mapping[str, Any], ood_loader_dict: Mapping[str, Any]
    ) -> None:
        """Fit baselines and calibrate the detector, where needed, on in-distribution images alone.

        Args:
            net: Evaluated classifier.
            id_loader_dict: In-distribution loaders ``train``, ``val`` and ``test``.
            ood_loader_dict: Not used.

        Raises:
            InputError: The detector has another classifier, or images are normalised differently.
        """
        self._check_same_classifier(net, next(iter(id_loader_dict["val"]))["data"])
        baselines = self.detector.model.baselines
        second = self.detector.model.second_network
        is_fitted = baselines.fitted and (second is None or second.baselines.fitted)
        if not is_fitted:
            self.detector.fit_baselines(self._batches(id_loader_dict["train"]))
        path_scores = self.detector.model.path_scores
        if path_scores.needs_fit and not path_scores.fitted:
            self.detector.fit_path_scores(self._batches(id_loader_dict["train"]))
        if self.detector.calibrated is None:
            self.detector.calibrate(self._batches(id_loader_dict["val"]))

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Return classes [N] and scores [N] of images.

        Args:
            net: Not used.
            data: Normalised images [N, 3, H, W].

        Returns:
            Predicted classes, and scores, higher = more in-distribution.
        """
        batch = {"data": data, "label": torch.full((len(data),), -1)}
        pred, conf, _ = self.inference(net, [batch], progress=False)
        return torch.from_numpy(pred).to(data.device), torch.from_numpy(conf).to(data.device)

    def inference(
        self, net: nn.Module, data_loader: Any, progress: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return classes, scores and labels of a loader's images.

        Args:
            net: Not used.
            data_loader: Batches, dicts with ``data`` and ``label``.
            progress: Whether to show a progress bar. Defaults to True.

        Returns:
            Predicted classes [N], scores [N], higher = more in-distribution, and labels [N].
        """
        from rich.progress import track

        batches = track(data_loader, "DiffGuard", total=len(data_loader), disable=not progress)
        predictions, scores, labels = [], [], []
        for batch, decisions in self.detector.decide(self._batches(batches)):
            if decisions is not None:
                predictions.append(decisions.labels.numpy())
                scores.append(decisions.scores.numpy())
                labels.append(np.asarray(batch["label"]))
        if not scores:
            raise InputError("inference: data_loader has no images; pass at least one")
        return (
            np.concatenate(predictions).astype(int),
            np.concatenate(scores),
            np.concatenate(labels).astype(int),
        )

    def _batches(self, loader: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the evaluator's batches as the detector takes them."""
        for batch in loader:
            images = images_for(self.detector, batch["data"], self.mean, self.std)
            yield {"image": images, "label": batch["label"]}

    @torch.no_grad()
    def _check_same_classifier(self, net: nn.Module, data: Tensor) -> None:
        device = next((weights.device for weights in net.parameters()), data.device)
        expected = net.eval()(data.to(device)).argmax(dim=1).cpu()
        images = images_for(self.detector, data, self.mean, self.std).to(self.detector.device)
        predicted = self.detector.model.classifier(images).argmax(dim=1).cpu()
        agree = int((predicted == expected).sum())
        if 2 * agree < len(data):
            raise InputError(
                f"DiffGuardPostprocessor: net and the detector's classifier agree on {agree} of "
                f"{len(data)} images; use a detector of this net, and the preprocessor's mean and "
                "std"
            )
