"""Scores on disk."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from diffguard_pl.module import DiffGuardModule
from diffguard_pl.scores import ScoreFile, columns, merge, rows


class ScoreWriter(pl.Callback):
    """Writes every image's result to ``scores.csv`` in the run's folder as it is made: a file a rank, joined at the end."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        self.folder = pl_module.run_folder
        self.file = ScoreFile(self._path(trainer.global_rank, trainer), columns(pl_module.score_names))

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule, outputs: Any, *_: Any) -> None:
        dataset = outputs["dataset"]
        group = pl_module.metrics.groups.get(dataset, "" if dataset == pl_module.datasets[0] else dataset)
        self.file.write(rows(outputs["batch"], dataset, group, outputs["detection"]))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        self.file.close()
        trainer.strategy.barrier()
        if trainer.is_global_zero and trainer.world_size > 1:
            merge([self._path(rank, trainer) for rank in range(trainer.world_size)], self.folder / "scores.csv")

    def on_exception(self, trainer: pl.Trainer, pl_module: DiffGuardModule, exception: BaseException) -> None:
        if hasattr(self, "file"):
            self.file.close()

    def _path(self, rank: int, trainer: pl.Trainer) -> Path:
        return self.folder / ("scores.csv" if trainer.world_size == 1 else f"scores-rank{rank}.csv")
