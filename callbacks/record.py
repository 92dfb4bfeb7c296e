"""The record of a run."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import SaveConfigCallback

from diffguard_pl import run
from diffguard_pl.errors import InputError
from diffguard_pl.files import replacing
from diffguard_pl.module import DiffGuardModule

from .pictures import class_names


class RunRecord(SaveConfigCallback):
    """Writes ``config.yaml`` and ``run.json`` when a run begins; refuses to go on with one whose weights were others."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            assert isinstance(pl_module, DiffGuardModule)
            self._write(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how many images the run is of, where all of them are to be computed and the loaders say how many there are."""
        loaders, limit = trainer.test_dataloaders, trainer.limit_test_batches
        if not (trainer.is_global_zero and isinstance(loaders, Mapping) and limit in (1.0, None)):
            return
        number, shards = getattr(trainer.datamodule, "shard", (0, 1))  # type: ignore[attr-defined]
        with suppress(TypeError, AttributeError):
            images = {name: len(range(len(loader.dataset))[number::shards]) for name, loader in loaders.items()}
            run.write_record(trainer.default_root_dir, run.read_record(trainer.default_root_dir) | {"images": images})

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            run.update_session(trainer.default_root_dir, ended=run.now())

    def _write(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        folder = trainer.default_root_dir
        weights = run.weights_hashes(pl_module.detector)
        record = run.read_record(folder)
        data = trainer.datamodule.contents() if hasattr(trainer.datamodule, "contents") else {}  # type: ignore[attr-defined]
        _check_same(folder, record, weights, data)
        settings = self.parser.dump(self.config, skip_none=False)
        if not record.get("config"):
            record |= {"config": yaml.safe_load(settings), "weights": weights, "data": data}
            record["class_names"] = class_names(trainer, pl_module)
        session: dict[str, Any] = {
            "began": run.now(),
            "command": run.command(),
            "machine": run.machine(),
            "devices": trainer.world_size,
            "versions": run.versions(),
            "revisions": run.revisions(),
            "slurm_job": run.slurm_job(),
        }
        for logger in trainer.loggers:
            if hasattr(logger, "run_id"):
                record["wandb_run"] = logger.run_id
        record["sessions"] = [*record.get("sessions", []), session]
        run.write_record(folder, record)
        saved = Path(folder) / run.CONFIG
        if not saved.exists():
            with replacing(saved) as unfinished:
                unfinished.write_text(settings)


def _check_same(folder: str, record: Mapping[str, Any], weights: Mapping[str, str], data: Mapping[str, Any]) -> None:
    """Raise an `InputError` where a run began with other weights or images."""
    for name, before in record.get("weights", {}).items():
        if weights.get(name) != before:
            raise InputError(
                f"run folder {folder}: the weights of the {name} are not those that the run began with; "
                "give their checkpoint back, or begin another run"
            )
    for name, before in record.get("data", {}).items():
        if name in data and data[name] != before:
            raise InputError(
                f"run folder {folder}: the images of {name} are not those that the run began with ({before['images']} then, "
                f"{data[name]['images']} now); give them back, or begin another run"
            )
