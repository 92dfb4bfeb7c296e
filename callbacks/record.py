"""The record of a run."""

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback

from diffguard_pl.errors import InputError
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.runs import record
from diffguard_pl.runs.files import atomic_write

from .wandb_run import WandbRun


class RunRecord(SaveConfigCallback):
    """Writes ``config.yaml`` and ``run.json`` when a run begins.

    A run is only resumed with the weights and images that it began with.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            assert isinstance(pl_module, DiffGuardModule)
            self._write(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the number of images of each dataset, where the loaders know it."""
        loaders, limit = trainer.test_dataloaders, trainer.limit_test_batches
        if not (trainer.is_global_zero and isinstance(loaders, Mapping) and limit in (1.0, None)):
            return
        assert isinstance(pl_module, DiffGuardModule)
        folder = trainer.default_root_dir
        shard, shards = pl_module.data.shard
        images = {}
        for name, loader in loaders.items():
            try:
                total = len(loader.dataset)
            except (TypeError, AttributeError):
                return  # an iterable dataset has no length
            images[name] = len(range(shard, total, shards))
        record.write_record(folder, record.read_record(folder) | {"images": images})

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            record.update_session(trainer.default_root_dir, ended=record.timestamp())

    def _write(self, trainer: pl.Trainer, pl_module: DiffGuardModule) -> None:
        folder = trainer.default_root_dir
        weights = record.weights_hashes(pl_module.diffguard)
        run_record = record.read_record(folder)
        data = pl_module.data.contents()
        _check_same(folder, run_record, weights, data)
        settings = self.parser.dump(self.config, skip_none=False)
        if not run_record.get("config"):
            run_record |= {"config": yaml.safe_load(settings), "weights": weights, "data": data}
            run_record["not_default"] = names_not_default(self.parser, self.config)
            run_record["class_names"] = pl_module.class_names()
            run_record["score_costs"] = pl_module.diffguard.score_costs()
            run_record["nfe_of_path_scores"] = pl_module.diffguard.nfe_of_path_scores
        session: dict[str, Any] = {
            "began": record.timestamp(),
            "command": record.launch_command(),
            "machine": record.machine(),
            "devices": trainer.world_size,
            "versions": record.package_versions(),
            "revisions": record.git_revisions(),
            "slurm_job": record.slurm_job_id(),
            "slurm_restarts": record.slurm_restarts(),
        }
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                run_record["wandb_run"] = logger.run_id
        run_record["sessions"] = [*run_record.get("sessions", []), session]
        record.write_record(folder, run_record)
        saved = Path(folder) / record.CONFIG_FILE
        if not saved.exists():
            with atomic_write(saved) as unfinished:
                unfinished.write_text(settings, encoding="utf-8")


def names_not_default(parser: LightningArgumentParser, config: Namespace) -> list[str]:
    """Return the names of the settings that scores depend on and that are not at their defaults."""
    given = yaml.safe_load(parser.dump(config, skip_none=False, skip_default=True))
    _drop_defaults_of_arguments(DiffGuardModule, given.get("model") or {})
    _drop_defaults(given)
    return record.setting_names(given)


def _drop_defaults(settings: dict[str, Any]) -> None:
    """Remove defaults that the parser keeps: tuples, and fields of dataclasses (architectures).

    Args:
        settings: Settings of a class or group, which are changed.
    """
    arguments = settings.get("init_args")
    if isinstance(arguments, dict):
        module, _, name = str(settings["class_path"]).rpartition(".")
        _drop_defaults_of_arguments(getattr(import_module(module), name), arguments)
    for value in settings.values():
        if isinstance(value, dict):
            _drop_defaults(value)


def _drop_defaults_of_arguments(kind: Any, arguments: dict[str, Any]) -> None:
    """Remove defaults among the arguments of a class."""
    hints, parameters = get_type_hints(kind.__init__), inspect.signature(kind).parameters
    for argument, value in list(arguments.items()):
        if argument in parameters and _is_tuple(parameters[argument].default, value):
            del arguments[argument]
        for alternative in get_args(hints.get(argument)):
            if is_dataclass(alternative) and isinstance(value, dict):
                _drop_defaults_of_fields(alternative, value)


def _drop_defaults_of_fields(kind: Any, settings: dict[str, Any]) -> None:
    """Remove settings at the defaults of a dataclass, if they are those of that dataclass."""
    if {field.name for field in fields(kind)} != settings.keys():
        return
    for field in fields(kind):
        value = settings[field.name]
        if field.default == value or _is_tuple(field.default, value):
            del settings[field.name]


def _is_tuple(default: Any, value: Any) -> bool:
    """Return whether a value is the list of a tuple."""
    return isinstance(default, tuple) and list(default) == value


def _check_same(
    folder: str, run_record: Mapping[str, Any], weights: Mapping[str, str], data: Mapping[str, Any]
) -> None:
    """Raise an `InputError` if a run began with other weights or images."""
    for name, before in run_record.get("weights", {}).items():
        if weights.get(name) != before:
            raise InputError(
                f"run folder {folder}: the weights of the {name} have changed since the run began; "
                "restore their checkpoint, or start another run"
            )
    for name, before in run_record.get("data", {}).items():
        if name in data and data[name] != before:
            raise InputError(
                f"run folder {folder}: the images of {name} have changed since the run began "
                f"({before.get('images')} then, {data[name].get('images')} now); "
                "restore them, or start another run"
            )
