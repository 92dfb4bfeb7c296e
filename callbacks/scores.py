"""Scores of a run's images on disk."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from diffguard_pl.datamodules.base import fingerprint
from diffguard_pl.errors import InputError, choose
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.evaluation.ranks import gather
from diffguard_pl.evaluation.transfer import Finished
from diffguard_pl.names import IND
from diffguard_pl.report.repeats import COLUMNS, describe_repeats
from diffguard_pl.runs.store import Header, PartWriter, part_files, part_numbers, read_scores
from diffguard_pl.stages import Detection

ARRAYS = {
    "logits": "input_logits",
    "features": "input_features",
    "reconstructions": "reconstruction",
}
"""Arrays that can be kept besides the scores, and their columns.

``logits`` and ``features`` alone are names of discrepancies.
"""


class ScoreWriter(pl.Callback):
    """Writes each image's results to ``scores/part-*.parquet`` in the run folder.

    The columns are described in docs/reference/results.md.

    Args:
        keep: Arrays to keep as well, in half precision: any of logits, features, reconstructions.
        every: Maximum seconds of work in one part, which an interruption can cost. 0 for a part
            after each batch.

    Attributes:
        resume: Whether to continue the run in the folder: keep its results and compute the rest.
            Without it, a folder with scores is an error.
    """

    def __init__(self, keep: Sequence[str] = (), every: float = 30.0):
        keep = [keep] if isinstance(keep, str) else list(keep)
        for name in keep:
            choose("scores.keep", name, list(ARRAYS))
        if every < 0:
            raise InputError(
                f"scores.every={every}: must be at least 0 seconds, 0 for a part after each batch"
            )
        self.columns, self.every, self.resume = [ARRAYS[name] for name in keep], every, False
        self.writer: PartWriter | None = None
        self.fingerprints: list[list[Any]] = []

    def setup(self, trainer: pl.Trainer, pl_module: DiffGuardModule, stage: str) -> None:
        """Find earlier results."""
        keeps_reconstructions = ARRAYS["reconstructions"] in self.columns
        if keeps_reconstructions and not pl_module.diffguard.sampling.reconstructs:
            raise InputError(
                "scores.keep: there are no reconstructions with model.compare_to=none; leave them "
                "out"
            )
        self.fingerprints = []
        self.folder = Path(trainer.strategy.broadcast(trainer.default_root_dir))
        # only the first rank looks: another one may see the first new part already
        found: list[Path] = trainer.strategy.broadcast(part_files(self.folder))
        if found and not self.resume:
            raise InputError(
                f"run folder {self.folder}: holds the results of another run; "
                "resume it, choose another folder, or remove them"
            )
        self.session = 1 + max((int(part_numbers(part)[0]) for part in found), default=-1)
        if not found:
            return
        earlier, header = read_scores(self.folder, only=found)
        before, now = [*header.scores, *header.arrays], [*pl_module.score_names, *self.columns]
        if before != now:
            raise InputError(
                f"run folder {self.folder}: has the scores {', '.join(before)}; "
                f"it cannot be resumed with {', '.join(now)}"
            )
        pl_module.resume_from(earlier)
        if trainer.is_global_zero:
            print(f"{len(earlier)} images have results already, in {self.folder}", flush=True)

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: DiffGuardModule, *_: Any) -> None:
        now = time.monotonic()
        if self.writer is None:
            header = Header(
                pl_module.score_names,
                pl_module.datasets,
                dict(pl_module.metrics.groups),
                self.columns,
                pl_module.combination.to_settings(),
            )
            part_name = f"{self.session:03}-{trainer.global_rank:04}"
            self.writer = PartWriter(self.folder, header, part_name)
            self.last_flush, self.spent = now, 0.0
        self.began = now

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any
    ) -> None:
        assert self.writer is not None
        self.spent += time.monotonic() - self.began
        finished: list[Finished] = outputs["finished"]
        images = sum(len(one.batch["image"]) for one in finished)
        # images are computed side by side, so that each counts with the mean
        seconds = self.spent / max(1, images)
        for one in finished:
            rows = self._rows(one, pl_module, seconds)
            self.writer.add(rows)
            self.fingerprints += [[row.get(name) for name in COLUMNS] for row in rows]
        if images:
            self.spent = 0.0
        if time.monotonic() - self.last_flush >= self.every:
            self._flush()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        self._flush()
        pl_module.wait_for_others()

    def on_test_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        """Warn of images that are in several datasets."""
        gathered = gather(self.fingerprints, trainer.world_size)
        if not trainer.is_global_zero:
            return
        import pandas as pd

        rows = [row for of_rank in gathered for row in of_rank]
        if pl_module.earlier is not None:
            rows += pl_module.earlier[COLUMNS].to_numpy().tolist()
        if line := describe_repeats(pd.DataFrame(rows, columns=COLUMNS), pl_module.datasets):
            warnings.warn(line, stacklevel=2)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, exception: BaseException
    ) -> None:
        try:
            self._flush()
        except InputError as error:
            print(error, flush=True)

    def _rows(
        self, finished: Finished, pl_module: DiffGuardModule, seconds: float
    ) -> list[dict[str, Any]]:
        """Return the rows of a batch, by index."""
        dataset, batch, detection = finished
        groups = pl_module.metrics.groups
        group = IND if dataset == pl_module.datasets[0] else groups.get(dataset, dataset)
        scored = [] if detection is None else _scored_rows(batch, detection, self.columns)
        rows = [row | {"seconds": seconds} for row in scored] + batch["unreadable"]
        return [
            {"dataset": dataset, "group": group} | row
            for row in sorted(rows, key=lambda row: row["index"])
        ]

    def _flush(self) -> None:
        if self.writer:
            self.writer.flush()
        self.last_flush = time.monotonic()


def _scored_rows(
    batch: dict[str, Any], detection: Detection, columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one dict per image, by column."""
    count = len(batch["path"])
    # -1: a cascade has skipped the image, and inversion never began
    stops = [stop if stop >= 0 else None for stop in detection.stop_index.tolist()]
    table: dict[str, Any] = {
        "index": batch["index"].tolist(),
        "path": list(batch["path"]),
        "label": batch["label"].tolist(),
        "prediction": detection.prediction.predicted.tolist(),
        "reconstructed_as": detection.labels.tolist(),
        "stop_index": stops,
        "nfe": [None] * count if detection.nfe is None else detection.nfe.tolist(),
    }
    table |= {name: values.tolist() for name, values in detection.scores.items()}
    table["fingerprint"] = [fingerprint(image) for image in batch["image"]]
    table |= {name: list(_array(detection, name)) for name in columns}
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _array(detection: Detection, column: str) -> np.ndarray:
    """Return an array [N, D] in half precision; a reconstruction as [N, 3 * H * W]."""
    view = detection.prediction.view
    tensor = {
        "input_logits": view.logits,
        "input_features": view.features,
        "reconstruction": detection.reconstructions,
    }[column]
    assert tensor is not None
    return tensor.detach().to(torch.float16).flatten(1).cpu().numpy()
