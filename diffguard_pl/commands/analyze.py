"""How well does the classifier see through noise? ``diffguard-pl analyze --config gdm`` (Fig. 2 of the paper).

Guidance asks the classifier about pictures that are on their way out of noise. This draws its accuracy against the time step: on
the noisy picture x_t itself, and on the clean picture x0hat that the diffusion model predicts from it, each whole and by crops.
"""

import csv
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningArgumentParser
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics import MeanMetric, MetricCollection, SumMetric

from ..callbacks import RunProgress
from ..diffguard import DiffGuard
from ..diffusion.classifier_guidance import crop_sequence
from ..diffusion.ddim import Level, predict_x0
from ..errors import InputError
from ..evaluation.transfer import Finished
from ..runs.files import atomic_write
from ..runs.lock import releasing_locks
from ..runs.record import CONFIG_FILE
from .cli import CLI, command_line
from .errors import LEFT_OUT, one_line_errors

VARIANTS = {
    "x_t": "$x_t$",
    "x_t_cutouts": "$x_t$, cutouts",
    "x0hat": "$\\hat{x}_0$",
    "x0hat_cutouts": "$\\hat{x}_0$, cutouts",
}
"""Columns of the CSV and how the plot calls them."""


class Point(NamedTuple):
    """Accuracy of the classifier at one step of the schedule, in [0, 1], by variant."""

    step: int
    timestep: int
    accuracy: dict[str, float]


class Analysis:
    """Settings of the analysis.

    Args:
        every: steps of the schedule between two points; none: a tenth of them. The original: 0, 9, 19, ..., 99 of 100.
        cutouts: crops whose logits are averaged.
        cutout_size: side of the smallest crop; none: seven eighths of the picture.
        seed: of the noise, which is fixed for each image by its index, and of the crops.
    """

    def __init__(
        self,
        every: int | None = None,
        cutouts: int = 8,
        cutout_size: int | None = None,
        seed: int = 42,
    ):
        if (every is not None and every < 1) or cutouts < 1:
            raise InputError(f"analysis.every={every}, cutouts={cutouts}: expected at least 1 each")
        self.every, self.cutouts, self.cutout_size, self.seed = every, cutouts, cutout_size, seed

    def indices(self, steps: int) -> list[int]:
        """Which of the schedule's steps to look at."""
        every = self.every or max(1, steps // 10)
        return sorted({0, *range(every - 1, steps, every)})


class AnalysisModule(pl.LightningModule):
    """Accuracy on noisy and on predicted pictures, for ``Trainer.test`` on in-distribution images with labels."""

    def __init__(self, detector: DiffGuard, analysis: Analysis, data: Any):
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images than devices
        self.detector, self.analysis, self.data = detector, analysis, data
        self.datasets = list(data.datasets())[:1]
        self.unreadable, self.usable = SumMetric(), SumMetric()
        self.indices = analysis.indices(len(detector.schedule))
        self.accuracy = MetricCollection(
            {f"{v}/{i}": MeanMetric() for v in VARIANTS for i in self.indices}, compute_groups=False
        )
        self.points: list[Point] = []

    def test_dataloader(self) -> dict[str, Any]:
        self.data.trainer = self.trainer  # so that it shares out the images
        return {name: self.data.test_dataloader()[name] for name in self.datasets}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, list[Finished]]:
        if "error" in batch:
            raise InputError(batch["error"])
        self.unreadable.update(len(batch.get("unreadable", [])))
        self.usable.update(len(batch["image"]))
        known = (torch.as_tensor(batch["label"]) >= 0).nonzero()[:, 0]
        if len(known):
            self._look(batch["image"][known], batch["label"][known], batch["index"][known])
        return {"finished": [Finished(self.datasets[0], {"unreadable": []} | batch, None)]}

    def on_test_epoch_end(self) -> None:
        self.left_out, self.count = int(self.unreadable.compute()), int(self.usable.compute())
        timesteps = self.detector.schedule.timesteps
        self.points = [
            Point(
                i,
                int(timesteps[i]),
                {v: self.accuracy[f"{v}/{i}"].compute().item() for v in VARIANTS},
            )
            for i in self.indices
        ]

    def _look(self, images: Tensor, labels: Tensor, indices: Tensor) -> None:
        backbone, schedule = self.detector.backbone, self.detector.schedule
        x = backbone.encode(images * 2 - 1)
        noise = torch.stack([self._noise(int(index), x) for index in indices])
        null = (
            labels if backbone.null_label is None else torch.full_like(labels, backbone.null_label)
        )
        for i in self.indices:
            level = Level.of(schedule.denoising_from[i].expand(len(x)), x)
            x_t = level.signal * x + level.noise * noise
            x0 = predict_x0(
                x_t,
                backbone.eps(x_t, schedule.timesteps[i].expand(len(x)).to(x.device), null),
                level,
            )
            if backbone.clip_denoised:
                x0 = x0.clamp(-1, 1)
            for name, state in (("x_t", x_t), ("x0hat", x0)):
                picture = ((state if backbone.is_pixel_space else backbone.decode(state)) + 1) / 2
                whole, crops = self._logits(picture)
                self.accuracy[f"{name}/{i}"].update((whole.argmax(dim=1) == labels).float())
                self.accuracy[f"{name}_cutouts/{i}"].update((crops.argmax(dim=1) == labels).float())

    def _noise(self, index: int, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.analysis.seed + index)
        return torch.randn(x.shape[1:], generator=generator).to(x)

    def _logits(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Of pictures [N, 3, H, W]: as a whole, and the mean over the same crops at every step; [N, classes] each."""
        classifier, side = self.detector.classifier, pictures.shape[-1]
        size = self.analysis.cutout_size or round(side * 7 / 8)
        crops = next(crop_sequence(side, self.analysis.cutouts, size, self.analysis.seed))
        views = torch.cat(
            [interpolate(crop.apply(pictures), classifier.input_size) for crop in crops]
        )
        return classifier.whole(pictures), classifier(views).view(
            len(crops), len(pictures), -1
        ).mean(dim=0)


class AnalyzeCLI(CLI):
    """The settings of a test, and those of the analysis in place of the callbacks'."""

    record = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Analysis, "analysis")


def main(args: list[str] | None = None) -> None:
    """Run the analysis as the command line says."""
    with one_line_errors(), releasing_locks():
        cli = command_line(AnalyzeCLI, args, callbacks=[RunProgress()], run_kind="analyze")
        module = AnalysisModule(cli.model.diffguard, cli.config_init.analysis, cli.data)
        cli.trainer.test(module, verbose=False)
        if not cli.trainer.is_global_zero:
            return
        (dataset,) = module.datasets
        if module.count == 0:
            raise InputError(
                f"{dataset}: none of its {module.left_out} images could be used; `diffguard-pl data check` says more"
            )
        if any(value != value for point in module.points for value in point.accuracy.values()):
            raise InputError(f"{dataset} has no labels: accuracy cannot be told")
        folder = cli.trainer.default_root_dir
        with atomic_write(Path(folder) / CONFIG_FILE) as unfinished:
            unfinished.write_text(cli.parser.dump(cli.config, skip_none=False))
        write(module.points, f"{folder}/analysis.csv")
        draw(module.points, dataset, f"{folder}/analysis.png")
        print(f"accuracy: {folder}/analysis.csv\n    plot: {folder}/analysis.png")
        if module.left_out:
            print(
                f"{module.left_out} images of {dataset} could not be used and are left out",
                file=sys.stderr,
            )
            sys.exit(LEFT_OUT)


def write(points: list[Point], path: str) -> None:
    """As CSV, a line for each step."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "timestep", *VARIANTS])
        writer.writerows([p.step, p.timestep, *(p.accuracy[v] for v in VARIANTS)] for p in points)


def draw(points: list[Point], dataset: str, path: str) -> None:
    """As a plot, a line for each variant."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for variant, marker, colour in zip(
        VARIANTS, "os^D", ["#9a9aa0", "#c77d2e", "#3b7dbf", "#1b4f8a"], strict=True
    ):
        heights = [100 * point.accuracy[variant] for point in points]
        axes.plot(
            [p.timestep for p in points],
            heights,
            marker=marker,
            markersize=4,
            color=colour,
            label=VARIANTS[variant],
        )
    axes.set(
        xlabel="time step",
        ylabel="accuracy in percent",
        ylim=(0, 102),
        title=f"The classifier on {dataset}, out of noise",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
