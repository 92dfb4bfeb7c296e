"""Accuracy of the classifier on images out of noise, by timestep (Fig. 2 of the paper).

Classifier guidance asks the classifier about images on their way out of noise. This measures its
accuracy on the noisy image x_t itself and on the clean image x0hat that the diffusion model
predicts from it, each on the whole image and on crops.
"""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics import MeanMetric, MetricCollection, SumMetric

from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..diffusion.classifier_guidance import crop_sequence
from ..diffusion.ddim import Level, predict_x0
from ..errors import InputError
from ..metrics.noise_accuracy import NoiseAccuracy
from .transfer import Finished

VARIANTS = ("x_t", "x_t_cutouts", "x0hat", "x0hat_cutouts")
"""What the classifier is shown."""


class Analysis:
    """Settings of the analysis.

    Args:
        every: Steps of the schedule between two points. Defaults to a tenth of them; the original's
            points are 0, 9, 19, ..., 99 of 100.
        cutouts: Number of crops whose logits are averaged.
        cutout_size: Side of the smallest crop. Defaults to seven eighths of the image's.
        seed: Seed of the noise, which is fixed for each image by its index, and of the crops.
    """

    def __init__(
        self,
        every: int | None = None,
        cutouts: int = 8,
        cutout_size: int | None = None,
        seed: int = 42,
    ):
        if every is not None and every < 1:
            raise InputError(f"analysis.every={every}: must be at least 1")
        if cutouts < 1:
            raise InputError(f"analysis.cutouts={cutouts}: must be at least 1")
        self.every, self.cutouts, self.cutout_size, self.seed = every, cutouts, cutout_size, seed

    def step_indices(self, steps: int) -> list[int]:
        """List the indices of the steps to measure at, of a schedule of ``steps`` steps."""
        every = self.every or max(1, steps // 10)
        return sorted({0, *range(every - 1, steps, every)})


class NoiseAccuracyModule(pl.LightningModule):
    """Accuracy on noisy and on predicted images, for ``Trainer.test``.

    Args:
        diffguard: Method whose classifier and diffusion model are used.
        analysis: Settings.
        data: Data module; its in-distribution dataset is used.
    """

    def __init__(self, diffguard: DiffGuard, analysis: Analysis, data: OODData):
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images than devices
        self.diffguard, self.analysis, self.data = diffguard, analysis, data
        self.dataset = next(iter(data.datasets()))
        self.datasets = [self.dataset]  # of the test loaders, for the progress line
        self.unreadable, self.usable = SumMetric(), SumMetric()
        self.indices = analysis.step_indices(len(diffguard.schedule))
        names = [f"{variant}/{index}" for variant in VARIANTS for index in self.indices]
        self.accuracy = MetricCollection(
            {name: MeanMetric() for name in names}, compute_groups=False
        )
        self.points: list[NoiseAccuracy] = []
        """The result, of all ranks."""

    def test_dataloader(self) -> dict[str, Any]:
        self.data.trainer = self.trainer  # it distributes the images over the ranks
        return {self.dataset: self.data.test_dataloader()[self.dataset]}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, list[Finished]]:
        if "error" in batch:
            raise InputError(batch["error"])
        self.unreadable.update(len(batch.get("unreadable", [])))
        self.usable.update(len(batch["image"]))
        labelled = (torch.as_tensor(batch["label"]) >= 0).nonzero()[:, 0]
        if len(labelled):
            self._measure(
                batch["image"][labelled], batch["label"][labelled], batch["index"][labelled]
            )
        return {"finished": [Finished(self.dataset, {"unreadable": []} | batch, None)]}

    def on_test_epoch_end(self) -> None:
        self.left_out, self.count = int(self.unreadable.compute()), int(self.usable.compute())
        for index in self.indices:
            accuracy = {
                variant: self.accuracy[f"{variant}/{index}"].compute().item()
                for variant in VARIANTS
            }
            timestep = int(self.diffguard.schedule.timesteps[index])
            self.points.append(NoiseAccuracy(index, timestep, accuracy))

    def _measure(self, images: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Update the accuracies with images [N, 3, H, W] in [0, 1]."""
        backbone, schedule = self.diffguard.backbone, self.diffguard.schedule
        x = backbone.encode(images * 2 - 1)
        noise = torch.stack([self._noise(int(index), x) for index in indices])
        # The network is unconditional here, where it can be: x0hat must not know the label.
        null = labels
        if backbone.null_label is not None:
            null = torch.full_like(labels, backbone.null_label)
        for index in self.indices:
            # x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise
            level = Level.of(schedule.denoising_from[index].expand(len(x)), x)
            x_t = level.signal * x + level.noise * noise
            # x0hat, the network's prediction of x from x_t
            timesteps = schedule.timesteps[index].expand(len(x)).to(x.device)
            x0hat = predict_x0(x_t, backbone.eps(x_t, timesteps, null), level)
            if backbone.clip_denoised:
                x0hat = x0hat.clamp(-1, 1)
            for name, state in (("x_t", x_t), ("x0hat", x0hat)):
                decoded = state if backbone.is_pixel_space else backbone.decode(state)
                whole, crops = self._logits((decoded + 1) / 2)
                self.accuracy[f"{name}/{index}"].update((whole.argmax(1) == labels).float())
                self.accuracy[f"{name}_cutouts/{index}"].update((crops.argmax(1) == labels).float())

    def _noise(self, index: int, x: Tensor) -> Tensor:
        """Draw the noise of one image [C, H, W], which depends on its index alone."""
        generator = torch.Generator().manual_seed(self.analysis.seed + index)
        return torch.randn(x.shape[1:], generator=generator).to(x)

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, classes] of whole images, and their mean over the step's crops."""
        classifier, side = self.diffguard.classifier, images.shape[-1]
        size = self.analysis.cutout_size or round(side * 7 / 8)
        crops = next(crop_sequence(side, self.analysis.cutouts, size, self.analysis.seed))
        views = torch.cat(
            [interpolate(crop.apply(images), classifier.input_size) for crop in crops]
        )
        of_crops = classifier(views).view(len(crops), len(images), -1)
        return classifier.logits_at_any_size(images), of_crops.mean(dim=0)
