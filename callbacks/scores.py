"""Scores on disk."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from diffguard_pl.errors import InputError, choose
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.names import IND
from diffguard_pl.runs.store import Header, PartWriter, part_files, read_scores
from diffguard_pl.stages import Detection

ARRAYS = {
    "logits": "input_logits",
    "features": "input_features",
    "reconstructions": "reconstruction",
}
"""What can be kept besides the scores, and its column: ``logits`` and ``features`` alone are names of discrepancies."""


class ScoreWriter(pl.Callback):
    """Writes every image's result to ``scores/part-*.parquet`` in the run's folder as it is made (columns: docs/results.md).

    Args:
        keep: what to keep besides, in half precision: any of logits, features, reconstructions.
        every: seconds of work that a part holds at most, and that an interruption can cost.

    Attributes:
        resume: go on with the run that is in the folder: count what is there and compute the rest. Without it, a folder that has
            scores is refused.
    """

    def __init__(self, keep: Sequence[str] = (), every: float = 30.0):
        keep = [keep] if isinstance(keep, str) else list(keep)
        for name in keep:
            choose("scores.keep", name, list(ARRAYS))
        if every < 0:
            raise InputError(
                f"scores.every={every}: expected seconds, 0 for a part after each batch"
            )
        self.columns, self.every, self.resume = [ARRAYS[name] for name in keep], every, False
        self.writer: PartWriter | None = None

    def setup(self, trainer: pl.Trainer, pl_module: DiffGuardModule, stage: str) -> None:
        """Find what is there; the first rank says it to all, for another may see the first new part already."""
        self.folder = Path(trainer.strategy.broadcast(trainer.default_root_dir))
        found: list[Path] = trainer.strategy.broadcast(part_files(self.folder))
        if found and not self.resume:
            raise InputError(
                f"run folder {self.folder}: holds the results of another run; resume it, choose another, or remove them"
            )
        self.session = 1 + max((int(part.name.split("-")[1]) for part in found), default=-1)
        if found:
            earlier, header = read_scores(self.folder, only=found)
            if (header.scores, header.arrays) != (pl_module.score_names, self.columns):
                raise InputError(
                    f"run folder {self.folder}: has the scores {', '.join([*header.scores, *header.arrays])}; it cannot go on with "
                    f"{', '.join([*pl_module.score_names, *self.columns])}"
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
            self.writer = PartWriter(
                self.folder, header, f"{self.session:03}-{trainer.global_rank:04}"
            )
            self.last, self.spent = now, 0.0
        self.began = now

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any
    ) -> None:
        assert self.writer is not None
        self.spent += time.monotonic() - self.began
        images = sum(len(finished.batch["image"]) for finished in outputs["finished"])
        for dataset, batch, detection in outputs["finished"]:
            group = (
                IND
                if dataset == pl_module.datasets[0]
                else pl_module.metrics.groups.get(dataset, dataset)
            )
            rows = _rows(batch, detection, self.columns)
            seconds = self.spent / max(1, images)
            self.writer.add(
                [
                    {"dataset": dataset, "group": group}
                    | row
                    | ({} if "error" in row else {"seconds": seconds})
                    for row in rows
                ]
            )
        if images:
            self.spent = 0.0
        if time.monotonic() - self.last >= self.every:
            self._flush()

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        self._flush()
        pl_module.wait_for_others()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: DiffGuardModule, exception: BaseException
    ) -> None:
        try:
            self._flush()
        except InputError as error:
            print(error, flush=True)

    def _flush(self) -> None:
        if self.writer:
            self.writer.flush()
        self.last = time.monotonic()


def _rows(
    batch: dict[str, Any], detection: Detection | None, columns: Sequence[str]
) -> list[dict[str, Any]]:
    """One dict an image, by column; ``detection`` is None where no image of the batch could be read."""
    unreadable: list[dict[str, Any]] = batch["unreadable"]
    if detection is None:
        return unreadable
    table: dict[str, Any] = {
        "index": batch["index"].tolist(),
        "path": list(batch["path"]),
        "label": batch["label"].tolist(),
        "prediction": detection.prediction.predicted.tolist(),
        "reconstructed_as": detection.labels.tolist(),
        "stop_index": [stop if stop >= 0 else None for stop in detection.stop_index.tolist()],
        "nfe": [None] * len(batch["path"]) if detection.nfe is None else detection.nfe.tolist(),
    }
    table |= {name: values.tolist() for name, values in detection.scores.items()}
    table |= {name: list(_array(detection, name)) for name in columns}
    scored = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return sorted(scored + unreadable, key=lambda row: row["index"])


def _array(detection: Detection, column: str) -> np.ndarray:
    """Half precision, [N, D]; a reconstruction as [N, 3 * H * W]."""
    view = detection.prediction.view
    tensor: Tensor = {
        "input_logits": view.logits,
        "input_features": view.features,
        "reconstruction": detection.reconstructions,
    }[column]
    return tensor.detach().to(torch.float16).flatten(1).cpu().numpy()
