"""Accuracy of the classifier on images out of noise, by timestep (Fig. 2 of the paper).

Classifier guidance asks the classifier about images on their way out of noise. This measures its
accuracy on the noisy image x_t itself and on the clean image x0hat that the diffusion model
predicts from it, each on the whole image and on crops. A classifier that was trained on noisy
images can be compared with it (Fig. 2A).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchmetrics import MeanMetric, MetricCollection

from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..diffusion.classifier_guidance import crop_and_resize, crop_sequence
from ..diffusion.ddim import Level, predict_x0
from ..errors import InputError
from ..metrics.noise_accuracy import AGREEMENTS, VOTES, NoiseAccuracy, agreement, correct_by_vote
from .analysis import AnalysisModule

CLEAN = 0
"""Index of the step whose images get no noise, as in the original's scripts."""
VARIANTS = tuple(
    variant
    for state in ("x_t", "x0hat")
    for variant in (state, *(f"{state}_cutouts_{vote}" for vote in VOTES))
)
"""What the classifier is shown: whole images, and crops by the vote that they are subject to."""
NOISY_CLASSIFIER = "x_t_noisy_classifier"
"""Variant of the second classifier, on the whole noisy image."""


class Analysis:
    """Settings of the analysis.

    Args:
        every: Steps of the schedule between two points. Defaults to a tenth of them; the original's
            points are 0, 9, 19, ..., 99 of 100.
        cutouts: Number of crops of each image.
        cutout_size: Side of the smallest crop, to which all are resized. Defaults to seven eighths
            of the image's.
        seed: Seed of the noise and of the crops, which are fixed for each image by its index.
        noisy_classifier: Classifier of noisy images to compare with (Fig. 2A): a checkpoint for
            :class:`~diffguard_pl.backbones.NoisyClassifier`, such as ``gdm-classifier256``, or a
            module that returns logits of images [N, 3, H, W] in [-1, 1] with noise and of their
            timesteps [N]. Defaults to none.
    """

    def __init__(
        self,
        every: int | None = None,
        cutouts: int = 8,
        cutout_size: int | None = None,
        seed: int = 42,
        noisy_classifier: nn.Module | str | None = None,
    ):
        if every is not None and every < 1:
            raise InputError(f"analysis.every={every}: must be at least 1")
        if cutouts < 1:
            raise InputError(f"analysis.cutouts={cutouts}: must be at least 1")
        self.every, self.cutouts, self.cutout_size, self.seed = every, cutouts, cutout_size, seed
        self.noisy_classifier = noisy_classifier

    def step_indices(self, steps: int) -> list[int]:
        """List the indices of the steps to measure at, of a schedule of ``steps`` steps."""
        every = self.every or max(1, steps // 10)
        return sorted({CLEAN, *range(every - 1, steps, every)})


class NoiseAccuracyModule(AnalysisModule):
    """Accuracy on noisy and on predicted images, for ``Trainer.test``.

    Args:
        diffguard: Method whose classifier and diffusion model are used.
        analysis: Settings.
        data: Data module; its in-distribution dataset is used.
        noisy_classifier: Module of ``analysis.noisy_classifier``. Defaults to none.
        tf32: See :class:`~diffguard_pl.DiffGuardModule`.

    Attributes:
        points: The result, of all ranks: one point per step.
    """

    def __init__(
        self,
        diffguard: DiffGuard,
        analysis: Analysis,
        data: OODData,
        noisy_classifier: nn.Module | None = None,
        tf32: bool = True,
    ):
        super().__init__(diffguard, data, [next(iter(data.datasets()))], tf32)
        self.analysis, self.noisy_classifier = analysis, noisy_classifier
        self.indices = analysis.step_indices(len(diffguard.schedule))
        self.variants: tuple[str, ...] = VARIANTS
        self.agreements: tuple[str, ...] = ()
        if noisy_classifier is not None:
            self.variants += (NOISY_CLASSIFIER,)
            self.agreements = AGREEMENTS
        names = [
            f"{name}/{index}"
            for name in (*self.variants, *self.agreements)
            for index in self.indices
        ]
        self.fractions = MetricCollection(
            {name: MeanMetric() for name in names}, compute_groups=False
        )
        self.points: list[NoiseAccuracy] = []

    def measure(self, batch: dict[str, Any], dataset: str) -> None:
        labelled = (torch.as_tensor(batch["label"]) >= 0).nonzero()[:, 0]
        if len(labelled):
            self._measure(*(batch[key][labelled] for key in ("image", "label", "index")))

    def summarise(self) -> None:
        for index in self.indices:
            timestep = int(self.diffguard.schedule.timesteps[index])
            accuracy = self._computed(self.variants, index)
            agreements = self._computed(self.agreements, index)
            self.points.append(NoiseAccuracy(index, timestep, accuracy, agreements))
        # All points are of the same images.
        if self.count and any(math.isnan(value) for value in self.points[0].accuracy.values()):
            raise InputError(
                f"{self.datasets[0]}: accuracy needs labels; choose a dataset that has them"
            )

    def _computed(self, names: tuple[str, ...], index: int) -> dict[str, float]:
        return {name: self.fractions[f"{name}/{index}"].compute().item() for name in names}

    def _measure(self, images: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Update the fractions with images [N, 3, H, W] in [0, 1]."""
        backbone, schedule = self.diffguard.backbone, self.diffguard.schedule
        x = backbone.encode(images * 2 - 1)
        noise = torch.stack([self._noise(int(index), x) for index in indices])
        side = backbone.image_size if backbone.is_pixel_space else backbone.input_size
        crops = torch.stack([self._crops(int(index), side) for index in indices]).to(x.device)
        for number, index in enumerate(self.indices):
            timesteps = schedule.timesteps[index].expand(len(x)).to(x.device)
            x_t, x0hat = self._states(x, noise, index, timesteps, labels)
            predicted, correct = {}, {}
            for name, state in (("x_t", x_t), ("x0hat", x0hat)):
                decoded = state if backbone.is_pixel_space else backbone.decode(state)
                views = (decoded + 1) / 2
                predicted[name] = self.diffguard.classifier.logits_at_any_size(views).argmax(1)
                correct[name] = predicted[name] == labels
                votes = correct_by_vote(self._crop_logits(views, crops[:, number]), labels)
                correct |= {f"{name}_cutouts_{vote}": right for vote, right in votes.items()}
            if self.noisy_classifier is not None:
                noisy = self.noisy_classifier(x_t, timesteps).argmax(dim=1)
                correct[NOISY_CLASSIFIER] = noisy == labels
                correct |= agreement(noisy, predicted["x_t"], labels)
            for name, values in correct.items():
                self.fractions[f"{name}/{index}"].update(values.float())

    def _states(
        self, x: Tensor, noise: Tensor, index: int, timesteps: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return x_t and x0hat, each [N, C, h, w], at a step of the schedule."""
        if index == CLEAN:
            return x, x
        backbone = self.diffguard.backbone
        # x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise
        levels = self.diffguard.schedule.denoising_from
        level = Level.of(levels[index].expand(len(x)), x)
        x_t = level.signal * x + level.noise * noise
        # x0hat, the network's prediction of x from x_t. The network is unconditional here, where it
        # can be: x0hat must not know the label.
        sampler = self.diffguard.sampler()
        eps = sampler.network(x_t, timesteps, sampler.null_labels(labels))
        x0hat = predict_x0(x_t, eps, level)
        return x_t, x0hat.clamp(-1, 1) if backbone.clip_denoised else x0hat

    def _noise(self, index: int, x: Tensor) -> Tensor:
        """Draw the noise of one image [C, H, W], which depends on its index alone."""
        generator = torch.Generator().manual_seed(self.analysis.seed + index)
        return torch.randn(x.shape[1:], generator=generator).to(x)

    def _crops(self, index: int, side: int) -> Tensor:
        """Draw the crops of one image, [steps, cutouts, 3], which depend on its index alone."""
        sequence = crop_sequence(
            side, self.analysis.cutouts, self._cutout_size(side), self.analysis.seed + index
        )
        return torch.tensor([[crop[:3] for crop in next(sequence)] for _ in self.indices])

    def _cutout_size(self, side: int) -> int:
        return self.analysis.cutout_size or round(side * 7 / 8)

    def _crop_logits(self, images: Tensor, crops: Tensor) -> Tensor:
        """Return logits [N, cutouts, classes] of crops [N, cutouts, 3] of images [N, 3, H, W]."""
        classifier = self.diffguard.classifier
        # Nearest neighbours, as in guidance: to the smallest crop, then to the classifier's size.
        views = crop_and_resize(images, crops, self._cutout_size(images.shape[-1]))
        views = interpolate(views, classifier.input_size)
        return classifier(views).unflatten(0, crops.shape[:2])
