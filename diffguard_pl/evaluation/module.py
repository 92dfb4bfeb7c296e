"""DiffGuard as a LightningModule: the four stages, and the results of all ranks."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.precision import HalfPrecision
from torch import Tensor

from ..datamodules.base import OODData
from ..diffguard import DiffGuard
from ..diffusion.ddim import StepCallback
from ..dtypes import allow_tf32
from ..engine import reference
from ..errors import InputError, choose
from ..metrics.table import ResultRow
from ..metrics.torchmetric import OODMetrics
from ..names import CALIBRATION
from ..scores.baselines.collection import Baselines
from ..scores.combination import Cascade, Combination, Fusion
from ..scores.training_features import fit_baselines
from ..stages import Detection
from .batches import BatchReader, dataset_names, is_in_distribution
from .gate import gates
from .oracle import ORACLES, oracle_labels
from .path_fit import fit_path_scores
from .precision import NetworksInHalf
from .ranks import PatientBarrier
from .results import ResultCollector, logged
from .transfer import Finished, TransferQueue
from .watch import watching

if TYPE_CHECKING:
    import pandas as pd


class DiffGuardModule(pl.LightningModule):
    """DiffGuard for ``Trainer.test``.

    Test loaders are a dict from dataset name to loader, the in-distribution one first. Batches are
    dicts with ``image`` [N, 3, H, W] in [0, 1] and, if known, ``label`` (-1 for out-of-distribution
    or unknown), ``index`` and ``path``; or pairs (image, label). A list ``unreadable`` of dicts
    with ``index``, ``path`` and ``error`` names images that could not be read: they are counted,
    nothing else. A text ``error`` ends the run.

    Fusion and cascade are calibrated on one more loader, of in-distribution validation images, with
    the name ``calibration``; the data modules of this package provide it. Baselines and path scores
    that need training images are fitted on the data module's ``train_dataloader()``, unless
    ``module.diffguard.fit_baselines(loader)`` or ``fit_path_scores(loader)`` was called before.

    Args:
        oracle: Images to reconstruct under their true labels in place of the predicted ones:
            ``none``, ``ind`` (in-distribution images), or ``all`` (these, and every other image
            under a random label, fixed by its dataset and index).
        fusion: Additional score: the mean of other scores on one scale.
        cascade: Additional score: a classifier's score where that is confident, a discrepancy where
            it is not.
        tf32: On a GPU, round the factors of float32 matrix products and convolutions to TF32, which
            is several times as fast. No effect on other precisions, nor on a CPU.
        detector: Settings of :class:`~diffguard_pl.DiffGuard`.

    Attributes:
        calibrating: Whether calibration images alone are scored.
        results: Result table, with 95 % intervals on the first rank and empty on the others.
        ind_accuracy: Accuracy of the classifier on labelled in-distribution images, NaN without
            any.
        full_spectrum_accuracy: The same with the covariate-shifted datasets; NaN without any.
        left_out: Number of images of each dataset without scores, because they are unreadable.
        error: Error of the current batch; raised when all images before it have their results.
        on_step: Functions that callbacks set to watch each step of ``inversion`` and ``denoising``.
        between_steps: Functions to call between any two steps, and while this rank waits for
            others; they may end the run.
    """

    def __init__(
        self,
        oracle: str = "none",
        fusion: Fusion | None = None,
        cascade: Cascade | None = None,
        tf32: bool = True,
        **detector: Any,
    ):
        super().__init__()
        choose("oracle", oracle, ORACLES)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer images than devices
        self.oracle, self.tf32 = oracle, tf32
        self.diffguard = DiffGuard(**detector)
        names = self.diffguard.diffusion_score_names, self.diffguard.baseline_names
        early = self.diffguard.path_scores.early_names
        self.combination = Combination.checked(fusion, cascade, *names, early)
        self.calibrating = False
        self.earlier: pd.DataFrame | None = None
        self.done: dict[str, set[int]] = {}
        self.results: list[ResultRow] = []
        self.ind_accuracy = self.full_spectrum_accuracy = float("nan")
        self.left_out: dict[str, int] = {}
        self.error: InputError | None = None
        self.on_step: dict[str, StepCallback] = {}
        self.between_steps: list[Callable[[], None]] = []
        self._data: tuple[Any, OODData] | None = None

    # ------------------------------------------------------------------ what callbacks ask for

    @property
    def score_names(self) -> list[str]:
        """Names of the computed scores: discrepancies, path scores, baselines."""
        return self.diffguard.score_names

    @property
    def primary_score(self) -> str:
        """Name of the first score of the result table."""
        return self.combination.table_scores(self.score_names)[0]

    @property
    def metrics(self) -> OODMetrics:
        """Metrics of the scores, with their table at the end of a test."""
        return self.collector.metrics

    @property
    def data(self) -> OODData:
        """Data module of the test; an adapter for a foreign one, and for plain loaders."""
        given = self.trainer.datamodule  # type: ignore[attr-defined]
        if self._data is None or self._data[0] is not given:
            self._data = given, OODData.wrap(given)
        return self._data[1]

    def class_names(self) -> list[str] | None:
        """Return the names of the labels, by data, classifier or class folders; None if unknown."""
        names = self.data.class_names or self.diffguard.classifier.class_names
        if names:
            return list(names)
        folders = self.data.folder_names()
        return folders if len(folders) == self.diffguard.classifier.num_classes else None

    def resume_from(self, earlier: "pd.DataFrame") -> None:
        """Keep the results of an interrupted run, and compute only the missing ones.

        Args:
            earlier: Table of its scores, as of :func:`~diffguard_pl.runs.store.read_scores`.
        """
        self.earlier = earlier
        self.done = {
            name: set(of_dataset["index"].tolist())
            for name, of_dataset in earlier.groupby("dataset")
        }
        self.data.done = self.done

    def wait_for_others(self) -> None:
        """Wait until all ranks are here, however long that takes."""
        self.barrier.wait(meanwhile=self._between_steps)

    # ------------------------------------------------------------------ before the first batch

    def setup(self, stage: str) -> None:
        self.run_folder = Path(self.trainer.strategy.broadcast(self.trainer.default_root_dir))
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, HalfPrecision):
            self.trainer.strategy.precision_plugin = NetworksInHalf(plugin.precision)
        if self.combination and not self.calibrating:
            self.data.include_calibration()

    def on_test_start(self) -> None:
        groups = self.data.groups
        self.datasets = dataset_names(self.trainer.test_dataloaders, groups, self.calibrating)
        if self.combination and CALIBRATION not in self.datasets:
            raise InputError(
                f"data.calibration: not set, and {self.combination} needs in-distribution "
                f"validation images; set it, or add a test loader with the name {CALIBRATION!r}"
            )
        self.barrier = PatientBarrier(self.trainer.world_size)
        with allow_tf32(self.tf32), self.trainer.precision_plugin.test_step_context():
            self._fit_scores()
            self.gates = gates(self.combination.cascade, self.diffguard, self.data, self.device)
        self.reader = BatchReader(
            self.datasets, self.done, self.global_rank, self.trainer.world_size
        )
        derive = self.combination.apply_to_table
        metrics = OODMetrics(self.score_names, self.datasets, groups, True, derive)
        self.collector = ResultCollector(metrics, self.diffguard.classifier.num_classes)
        if self.earlier is not None:
            self.reader.add_earlier(self.earlier)
            if self.global_rank == 0:  # results of all ranks are added once
                self.collector.add_earlier(self.earlier)
        self.stream = self.diffguard.stream(self._between_steps)
        self.transfer = TransferQueue(self.device)
        self.error = None

    def _fit_scores(self) -> None:
        """Fit baselines and path scores to training images, where that has not been done."""
        path_scores, second = self.diffguard.path_scores, self.diffguard.second_network
        networks: list[tuple[Baselines, Any]] = [
            (self.diffguard.baselines, self.diffguard.classifier)
        ]
        if second is not None:
            networks.append((second.baselines, second.as_classifier))
        for baselines, network in networks:
            if baselines.needs_fit and not baselines.fitted:
                fit_baselines(
                    baselines,
                    network,
                    self.data.train_dataloader(),
                    self.data.train_contents(),
                    str(self.trainer.precision),
                    self.global_rank == 0,
                    self.wait_for_others,
                    gives_labels=network is self.diffguard.classifier,
                )
        if path_scores.needs_fit and not path_scores.fitted:
            fit_path_scores(
                self.diffguard,
                self.data,
                str(self.trainer.precision),
                self.global_rank == 0,
                self.wait_for_others,
            )

    # ------------------------------------------------------------------ every batch

    def test_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[Finished]]:
        # a watched batch is finished at once, and so is everything with the last batch
        finish = self.trainer.test_loop.batch_progress.is_last_batch or bool(self.on_step)
        with allow_tf32(self.tf32):
            try:
                self._detect(batch, self.datasets[dataloader_idx])
                if finish:
                    self._transfer(self.stream.drain())
            except InputError as error:
                # it is raised when callbacks have written the images before it
                self.error, finish = error, True
                with suppress(InputError):
                    self._transfer(self.stream.drain())
        finished = list(self.transfer.arrived(wait=finish))
        for one in finished:
            self.collector.add(one)
        return {"finished": finished}

    def on_test_batch_end(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error

    def _detect(self, batch: Any, dataset: str) -> None:
        """Run the four stages on a batch.

        The stream classifies its images at once (1). It inverts (2) and reconstructs (3) images of
        several batches side by side, and compares (4) the images of a batch when the last of them
        is reconstructed, perhaps many batches later.
        """
        batch = self.reader.read(batch, dataset)
        self.collector.add_unreadable(dataset, len(batch["unreadable"]))
        images, tag = batch["image"], (dataset, batch)
        if len(images) == 0:
            self._transfer(self.stream.push_nothing(tag))
            return
        in_distribution = is_in_distribution(dataset, self.datasets[0], self.data.groups)
        classes = self.diffguard.classifier.num_classes
        labels = oracle_labels(self.oracle, batch, dataset, in_distribution, classes)
        if self.on_step:
            self._transfer(self.stream.drain())
            self._transfer([(tag, self._detect_step_by_step(images, labels))])
        else:
            no_gates = dataset == CALIBRATION
            self._transfer(self.stream.push(images, labels, tag, None if no_gates else self.gates))

    def _detect_step_by_step(self, images: Tensor, labels: Tensor | None) -> Detection:
        """Run the four stages one after the other, for callbacks that watch each step."""
        if self.gates is not None:
            raise InputError(
                "cascade.skip: cannot be combined with trajectory.count, which draws images that "
                "it leaves out; turn one of the two off"
            )
        watch = watching(self.on_step, self._between_steps)
        with self.stream.stopwatch.timing("diffuse", self.device):
            return reference.detect(self.diffguard, images, labels, watch)

    def _between_steps(self) -> None:
        for check in self.between_steps:
            check()

    def _transfer(self, detected: Iterable[tuple[Any, Detection | None]]) -> None:
        for (dataset, batch), detection in detected:
            self.transfer.put(dataset, batch, detection)

    # ------------------------------------------------------------------ after the last batch

    def on_test_epoch_end(self) -> None:
        if self.stream.engine.requests:  # no batch was the last one
            raise InputError(
                "a test dataloader ended before len(dataloader) batches, so the last images were "
                "not scored; fix or remove its __len__"
            )
        if self.calibrating:
            self.reader.check_calibration()
        self.wait_for_others()
        self.results = self.collector.compute(self.device)
        self.ind_accuracy, self.left_out = self.collector.accuracy, self.collector.left_out
        self.full_spectrum_accuracy = self.collector.full_spectrum_accuracy
        self.log_dict(logged(self.results), rank_zero_only=True)
        self.log("accuracy", self.ind_accuracy, rank_zero_only=True)
        if not math.isnan(self.full_spectrum_accuracy):
            self.log("fsood_accuracy", self.full_spectrum_accuracy, rank_zero_only=True)

    def on_test_end(self) -> None:
        # callbacks have written scores and results by now
        for score, datasets in self.metrics.never_finite.items():
            # images that the cascade left out have no discrepancy
            if self.gates is not None and len(datasets) < len(self.datasets):
                continue
            raise InputError(
                f"model: the score {score} is NaN or infinite for every image of "
                f"{', '.join(datasets)}; check the checkpoints of classifier and backbone, and "
                "trainer.precision if it is not 32"
            )

    # ------------------------------------------------------------------ checkpoints of Lightning

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return nothing: all weights are frozen and come from their own checkpoints."""
        destination = kwargs.get("destination")
        return {} if destination is None else destination

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Accept an empty state, as of :meth:`state_dict`."""
        strict = strict and bool(state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
