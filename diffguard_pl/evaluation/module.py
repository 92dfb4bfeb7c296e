"""The evaluation module: classify, invert, reconstruct, compare."""

import random
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import HalfPrecision
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection, SumMetric

from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..diffusion.ddim import Step, StepCallback
from ..engine import reference
from ..errors import InputError, choose
from ..metrics.bootstrap import with_intervals
from ..metrics.table import ResultRow
from ..metrics.torchmetric import OODMetrics
from ..names import CALIBRATION
from ..scores.combination import Cascade, Combination, Fusion
from ..scores.training_features import fit_baselines
from ..stages import Detection, Gate, as_batch
from .batches import _check_names, _without
from .precision import NetworksInHalf
from .transfer import Finished, _on_cpu


class DiffGuardModule(pl.LightningModule):
    """DiffGuard for ``Trainer.test``.

    Test loaders are a dict from data set name to loader, the in-distribution one first. Batches are dicts with ``image``
    [N, 3, H, W] in [0, 1] and, if known, ``label`` (-1 for out-of-distribution, or for not known), ``index`` and ``path``; or pairs
    (image, label). A list ``unreadable`` of dicts with ``index``, ``path`` and ``error`` says which images could not be read: they are
    counted, and nothing else. A text ``error`` ends the run.

    Fusion and cascade are calibrated on one more loader, of in-distribution validation images, whose name is ``calibration``; the
    data modules of this package give it by themselves. Baselines that need fitting are fitted on the data module's
    ``train_dataloader()``, unless ``module.diffguard.fit_baselines(loader)`` was called before.

    Args:
        oracle: whose true labels to reconstruct under in place of the predicted ones: ``none``, ``ind`` (in-distribution images),
            or ``all`` (these, and a random label, fixed by its name and index, for every other image).
        fusion: one more score, the mean of others on one scale.
        cascade: one more score, of a classifier's score where that is sure and of a discrepancy where it is not.
        tf32: on a GPU, float32 matrix products and convolutions round their factors to TF32, which is several times as fast. No
            effect on other precisions, nor on a CPU.
        detector: the settings of the detector.
    """

    metrics: OODMetrics
    accuracy: MeanMetric
    unreadable: MetricCollection

    def __init__(
        self,
        oracle: str = "none",
        fusion: Fusion | None = None,
        cascade: Cascade | None = None,
        tf32: bool = True,
        **detector: Any,
    ):
        super().__init__()
        choose("oracle", oracle, ["none", "ind", "all"])
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images than devices
        self.oracle, self.tf32 = oracle, tf32
        self.diffguard = DiffGuard(**detector)
        names = self.diffguard.discrepancies.names, self.diffguard.baselines.names
        self.combination = Combination.checked(fusion, cascade, *names)
        self.calibrating = False
        """Score the calibration set alone."""
        self._data: tuple[Any, OODData] | None = None
        self.earlier: pd.DataFrame | None = None
        self.done: dict[str, set[int]] = {}
        self.results: list[ResultRow] = []
        """The result table, with 95 % intervals on the first rank."""
        self.left_out: dict[str, int] = {}
        self.on_step: dict[str, StepCallback] = {}
        """Called after each step of ``inversion`` and ``denoising``, for callbacks that watch."""
        self.between_steps: list[Callable[[], None]] = []
        """Called between any two steps and while this rank waits for others, for callbacks that may have to end the run."""

    @property
    def score_names(self) -> list[str]:
        """What is computed of an image: the discrepancies, the headline one first, and the baselines."""
        return self.diffguard.score_names

    @property
    def primary_score(self) -> str:
        """The score that the result table has in front."""
        return self.combination.table_scores(self.score_names)[0]

    def setup(self, stage: str) -> None:
        self.run_folder = Path(self.trainer.strategy.broadcast(self.trainer.default_root_dir))
        if isinstance(self.trainer.precision_plugin, HalfPrecision):
            self.trainer.strategy.precision_plugin = NetworksInHalf(
                self.trainer.precision_plugin.precision
            )
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        if self.combination and not self.calibrating:
            self.data.include_calibration()

    @property
    def data(self) -> OODData:
        """Data module of the test, wrapped if it does not fulfil the contract of :class:`OODData`."""
        given = self.trainer.datamodule  # type: ignore[attr-defined]
        if self._data is None or self._data[0] is not given:
            self._data = given, OODData.wrap(given)
        return self._data[1]

    def class_names(self) -> list[str] | None:
        """Return the names of the labels, as of the data, the classifier or the class folders; None if unknown."""
        names = self.data.class_names or self.diffguard.classifier.class_names
        if names:
            return list(names)
        folders = self.data.folder_names()
        return folders if len(folders) == self.diffguard.classifier.num_classes else None

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Nothing: all weights are frozen and come from their own checkpoints, so that a checkpoint of a test weighs nothing."""
        destination = kwargs.get("destination")
        return {} if destination is None else destination

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Nothing is kept, so nothing is missing."""
        return super().load_state_dict(
            state_dict, strict=strict and bool(state_dict), assign=assign
        )

    def go_on_from(self, earlier: pd.DataFrame) -> None:
        """Count these results of the same run, as :func:`~diffguard_pl.runs.store.read_scores` gives them, and compute only the others."""
        self.earlier = earlier
        self.done = {
            name: set(of_set["index"].tolist()) for name, of_set in earlier.groupby("dataset")
        }

    def on_test_start(self) -> None:
        loaders = self.trainer.test_dataloaders
        if not isinstance(loaders, Mapping) or (
            len(set(loaders) - {CALIBRATION}) < 2 and not self.calibrating
        ):
            raise InputError(
                "test loaders: expected a dict from data set name to loader, the in-distribution one first, then at least one more"
            )
        self.datasets = list(loaders)
        if self.datasets[0] == CALIBRATION and not self.calibrating:
            raise InputError(
                f"test loaders: the first one has to be the in-distribution one, not {CALIBRATION}"
            )
        if self.combination and CALIBRATION not in self.datasets:
            raise InputError(
                f"there are no in-distribution validation images to calibrate {self.combination} on; give a test loader with the "
                f"name {CALIBRATION!r}, or data.calibration"
            )
        groups = self.data.groups
        _check_names(self.datasets, groups)
        self.others: Any = None
        if self.trainer.world_size > 1:
            self.others = torch.distributed.new_group(timeout=timedelta(days=30), backend="gloo")
        self._fit()
        self.metrics = OODMetrics(  # on the CPU until all is gathered
            self.score_names,
            self.datasets,
            groups,
            first_rank=True,
            derive=self.combination.of_table,
        )
        # so that a rank without images has something to gather
        nothing = torch.zeros(0, dtype=torch.long)
        self.metrics.update(torch.zeros(0, len(self.score_names)), nothing, nothing)
        self.accuracy = MeanMetric()
        self.unreadable = MetricCollection(
            {str(d): SumMetric() for d in range(len(self.datasets))}, compute_groups=False
        )
        self.gate = self._gate()
        self.stream = self.diffguard.stream(self._between_passes)
        self.landing: deque[tuple[Finished, torch.cuda.Event | None]] = deque()
        self.error: InputError | None = None
        self.arrived = [0] * len(self.datasets)
        self.usable = [0] * len(self.datasets)
        self.first_reason = ""
        if self.earlier is not None:
            self._count(self.earlier)

    def _count(self, earlier: pd.DataFrame) -> None:
        """Earlier results into the metrics, on one rank, as if they had been computed now."""
        scored = earlier[earlier["error"].isna()]
        self.usable = [int((scored["dataset"] == name).sum()) for name in self.datasets]
        if self.global_rank != 0:
            return
        for d, name in enumerate(self.datasets):
            of_set = scored[scored["dataset"] == name]
            values = torch.tensor(of_set[self.score_names].to_numpy("float64"))
            indices = torch.tensor(of_set["index"].to_numpy("int64"))
            self.metrics.update(values, torch.full_like(indices, d), indices)
            self.unreadable[str(d)].update(int((earlier["dataset"] == name).sum()) - len(of_set))
            known = of_set[of_set["label"] >= 0]
            if d == 0 and len(known):
                right = (known["prediction"] == known["label"]).to_numpy("float32")
                self.accuracy.update(torch.tensor(right))

    def test_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[Finished]]:
        last = self.trainer.test_loop.batch_progress.is_last_batch or bool(self.on_step)
        try:
            self._take(batch, dataloader_idx)
            if last:
                self._land(self.stream.drain())
        except InputError as error:
            self.error, last = error, True
            with suppress(InputError):  # those before it are to have their scores
                self._land(self.stream.drain())
        return {"finished": self._landed(wait=last)}

    def on_test_batch_end(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error

    def _take(self, batch: Any, dataloader_idx: int) -> None:
        """Work on a batch, and on those before it."""
        batch = self._named(batch, dataloader_idx)
        images, tag = batch["image"], (batch, dataloader_idx)
        self.unreadable[str(dataloader_idx)].update(len(batch["unreadable"]))
        self._check_progress(batch, dataloader_idx)
        if len(images) == 0:
            self._land(self.stream.push_nothing(tag))
        elif self.on_step:
            if self.gate is not None:
                raise InputError(
                    "cascade.skip: leaves images out that trajectories are drawn of; set one of the two off"
                )
            self._land(self.stream.drain())
            watch = {way: self._after_step(way) for way in ("inversion", "denoising")}
            with self.stream.stopwatch.timing("diffuse", self.device):
                detection = reference.detect(
                    self.diffguard, images, self._oracle_labels(batch, dataloader_idx), watch
                )
            self._land([(tag, detection)])
        else:
            gate = None if self.datasets[dataloader_idx] == CALIBRATION else self.gate
            self._land(
                self.stream.push(images, self._oracle_labels(batch, dataloader_idx), tag, gate)
            )

    def _land(self, detected: Iterable[tuple[Any, Detection | None]]) -> None:
        """Bring results to the CPU; a GPU goes on while they are copied."""
        for (batch, dataloader_idx), detection in detected:
            finished = Finished(self.datasets[dataloader_idx], *_on_cpu(batch, detection))
            event = None
            if self.device.type == "cuda":
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(self.device))
            self.landing.append((finished, event))

    def _landed(self, wait: bool) -> list[Finished]:
        """What has arrived."""
        arrived = []
        while self.landing:
            finished, event = self.landing[0]
            if event is not None and not event.query():
                if not wait:
                    break
                event.synchronize()
            self.landing.popleft()
            if finished.detection is not None:
                self._count_in(finished, finished.detection)
            arrived.append(finished)
        return arrived

    def _count_in(self, finished: Finished, detection: Detection) -> None:
        """Into the metrics."""
        batch, dataloader_idx = finished.batch, self.datasets.index(finished.dataset)
        values = torch.stack([detection.scores[name] for name in self.score_names], dim=1)
        indices = torch.as_tensor(batch["index"])
        self.metrics.update(values, torch.full_like(indices, dataloader_idx), indices)
        if dataloader_idx == 0:
            known = batch["label"] >= 0
            if (batch["label"] >= self.diffguard.classifier.num_classes).any():
                what = "labels that the classifier does not know: is its numbering of the classes another?"
                warnings.warn(f"{finished.dataset} has {what}", stacklevel=1)
            self.accuracy.update((detection.prediction.predicted == batch["label"])[known].float())

    def _fit(self) -> None:
        """Fit the baselines that need it, and are not fitted, on the data module's training images."""
        baselines = self.diffguard.baselines
        if not baselines.needs_fit or baselines.fitted:
            return
        with self.trainer.precision_plugin.test_step_context():
            fit_baselines(
                baselines,
                self.diffguard.classifier,
                self.data.train_dataloader(),
                self.data.train_contents(),
                str(self.trainer.precision),
                self.global_rank == 0,
                self.wait_for_others,
            )

    def _gate(self) -> Gate | None:
        """Of a cascade that skips images: which ones it is unsure of. Every rank finds it by itself, of all calibration images."""
        cascade = self.combination.cascade
        if cascade is None or not cascade.skip:
            return None
        found = []
        with self.trainer.precision_plugin.test_step_context():
            for batch in self.data.calibration_dataloader():
                if len(batch["image"]):
                    found.append(
                        self.diffguard.classify(batch["image"].to(self.device))
                        .baselines[cascade.baseline]
                        .cpu()
                    )
        if not found:
            raise InputError(f"{CALIBRATION}: there are no images to calibrate the cascade on")
        return cascade.gate(torch.cat(found).numpy())

    def _between_passes(self) -> None:
        for check in self.between_steps:
            check()

    def _after_step(self, way: str) -> StepCallback:
        watch = self.on_step.get(way)

        def after(step: Step) -> None:
            self._between_passes()
            if watch:
                watch(step)

        return after

    def wait_for_others(self) -> None:
        """Until all ranks are here, for as long as that takes; a collective operation would give up on a slow one, and be deaf to
        signals."""
        if self.others is None:
            return
        work = torch.distributed.barrier(group=self.others, async_op=True)
        try:
            while not work.is_completed():
                self._between_passes()
                time.sleep(0.02)
            work.wait()
        except RuntimeError as error:
            raise InputError(
                "another rank is gone; what was written is kept, and --resume goes on with the run"
            ) from error

    def on_test_epoch_end(self) -> None:
        if self.stream.engine.requests:  # the last batch was not announced as such
            raise InputError(
                "test loaders: one gave fewer batches than its length says, and the last images have no scores; mend the "
                "length, or give none"
            )
        if self.calibrating and not self.usable[0] and self.trainer.world_size == 1:
            raise InputError(
                f"{CALIBRATION}: none of its {self.arrived[0]} images could be used; the first, {self.first_reason}"
            )
        self.wait_for_others()
        for metric in (self.metrics, self.accuracy, self.unreadable):
            metric.to(self.device)
        self.results = self.metrics.compute()
        if self.results and self.metrics.table is not None:
            self.results = with_intervals(self.results, self.metrics.table)
        for row in self.results:
            ends = {
                f"{name}_{end}": value
                for name, i in row.intervals.items()
                for end, value in i._asdict().items()
            }
            of = row.dataset if row.dataset != "mean" else row.group
            self.log_dict(
                {
                    f"{of}/{row.score}/{name}": value
                    for name, value in (row.metrics._asdict() | ends).items()
                },
                rank_zero_only=True,
            )
        self.ind_accuracy = self.accuracy.compute().item()  # NaN where no label is known
        self.log("accuracy", self.ind_accuracy, rank_zero_only=True)
        self.left_out = {
            self.datasets[int(d)]: int(count) for d, count in self.unreadable.compute().items()
        }

    def _named(self, batch: Any, dataloader_idx: int) -> dict[str, Any]:
        """The batch as a dict, with the images checked: an error names the file."""
        batch = dict(as_batch(batch, "image"))
        if "error" in batch:
            raise InputError(batch["error"])
        count, unreadable = len(batch["image"]), batch.setdefault("unreadable", [])
        batch.setdefault("label", torch.full((count,), -1, device=self.device))
        if "index" not in batch:  # in the order of arrival; every rank has indices of its own
            first = self.arrived[dataloader_idx]
            batch["index"] = (
                torch.arange(first, first + count, device=self.device) * self.trainer.world_size
                + self.global_rank
            )
        self.arrived[dataloader_idx] += count + len(unreadable)
        batch.setdefault("path", [""] * count)
        if done := self.done.get(self.datasets[dataloader_idx]):
            batch = _without(batch, done)
        if len(batch["image"]) == 0:
            return batch
        broken = ~batch["image"].isfinite().flatten(1).all(dim=1)
        if broken.any():
            i = int(broken.nonzero()[0])
            where = (
                f"{self.datasets[dataloader_idx]} image {int(batch['index'][i])} {batch['path'][i]}"
            )
            raise InputError(f"{where}: has NaN or infinite values; leave it out")
        return batch

    def _check_progress(self, batch: dict[str, Any], dataloader_idx: int) -> None:
        """Stop after an in-distribution set of which nothing could be used, not after all the others."""
        self.usable[dataloader_idx] += len(batch["image"])
        if dataloader_idx == 0:
            for item in batch["unreadable"][:1]:
                self.first_reason = self.first_reason or f"{item['path']}: {item['error']}"
        elif (
            self.arrived[0]
            and not self.usable[0]
            and (self.trainer.world_size == 1 or self.arrived[0] >= 32)
        ):
            raise InputError(
                f"{self.datasets[0]}: none of its {self.arrived[0]} images could be used; the first, {self.first_reason}; "
                "is data.root right?"
            )

    def _oracle_labels(self, batch: dict[str, Any], dataloader_idx: int) -> Tensor | None:
        """Labels [N] to reconstruct under, -1 for the predicted one."""
        classes, dataset = self.diffguard.classifier.num_classes, self.datasets[dataloader_idx]
        is_ind = dataloader_idx == 0 or dataset == CALIBRATION
        if self.oracle == "none" or (self.oracle == "ind" and not is_ind):
            return None
        if is_ind:
            wrong = (batch["label"] >= classes).nonzero()[:, 0].tolist()
            if wrong:
                i = wrong[0]
                raise InputError(
                    f"{dataset} image {int(batch['index'][i])} {batch['path'][i]}: its label {int(batch['label'][i])} is none "
                    f"of the classifier's {classes} classes; oracle: {self.oracle} needs true labels"
                )
            return batch["label"]
        drawn = [
            random.Random(f"{dataset}/{int(index)}").randrange(classes)
            for index in batch["index"].tolist()
        ]
        return torch.tensor(drawn, device=self.device)
