"""TODO."""

import itertools
import logging
import os
import re
import sys
import warnings
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import SUPPRESS, ActionConfigFile
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ..callbacks import (
    MetricsTable,
    PictureWriter,
    ReconstructionLogger,
    ReportPage,
    RunProgress,
    RunRecord,
    ScoreWriter,
    ThroughputMonitor,
    TrajectoryLogger,
    WandbRun,
)
from ..config import config_name, config_names, find_config, with_bases
from ..config_errors import construction_errors
from ..datamodules import import_data_modules
from ..datamodules.base import OODData
from ..errors import InputError
from ..evaluation.module import DiffGuardModule
from ..runs import record
from ..runs.lock import lock_run_folder
from ..runs.store import part_files
from .errors import Parser

DEFAULT_CONFIG = "digits_ldm"
AnyCLI = TypeVar("AnyCLI", bound="CLI")


def command_line(
    kind: "type[AnyCLI]", args: list[str] | None, callbacks: list[Callback], run_kind: str = ""
) -> "AnyCLI":
    """Module, data module and trainer as the command line says.

    Args:
        kind: of settings.
        args: none: those of the process.
        callbacks: that every run has.
        run_kind: folder of the run below ``runs``, before the name of the first config.
    """
    resolved, run_name = with_config_paths(sys.argv[1:] if args is None else args)
    # Lightning starts the processes of other devices with sys.argv: after "diffguard-pl", that is the command and its arguments
    command = sys.argv[1:2] if sys.argv[1:2] in (["test"], ["calibrate"], ["analyze"]) else []
    sys.argv[1:] = [*command, *resolved]
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    warnings.filterwarnings(
        "ignore", ".*does not have many workers.*|.*LeafSpec.*|.*sync_dist=True.*"
    )
    warnings.filterwarnings(
        "ignore", r"\s*.*(skip_none|instantiate_classes|add_instantiator).* deprecated"
    )  # jsonargparse 4.40 needs
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    import_data_modules()  # so that a config may name its classes without their package
    kind.run_folder = "/".join(filter(None, ["runs", run_kind, run_name]))
    return kind(
        DiffGuardModule,
        LightningDataModule,
        args=resolved,
        subclass_mode_data=True,
        run=False,
        auto_configure_optimizers=False,
        seed_everything_default=100,
        save_config_callback=kind.record,
        trainer_defaults={
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,  # it repeats images to pad; the data modules share out theirs
            "callbacks": callbacks,
        },
    )


def with_config_paths(args: list[str]) -> tuple[list[str], str]:
    """Arguments with the names of configs replaced by their paths, each after what it builds on, and the name of the first config.

    A run that is resumed brings its own; without a config, the default one is put in.
    """
    resolved: list[str] = []
    configs: list[str] = []
    rest = list(args)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name == "--resume":
            value = value if equals else rest.pop(0) if rest else ""
            resolved = ["--config", str(saved_config(value)), *resolved, "--resume", value]
            configs.append("resumed")
            continue
        if name == "--base":
            raise InputError(
                "--base is a setting of config files; on the command line give --config more than once"
            )
        if name not in ("-c", "--config"):
            resolved.append(name + equals + value)
        else:
            value = value if equals else rest.pop(0) if rest else ""
            if not value:
                raise InputError(
                    f"{name}: expected the name or path of a config; there are: {', '.join(config_names())}"
                )
            files = with_bases(value)
            configs.append(config_name(files[-1]))
            resolved += [part for file in files for part in ("--config", str(file))]
    if not configs:
        return ["--config", str(find_config(DEFAULT_CONFIG)), *resolved], DEFAULT_CONFIG
    return resolved, configs[0]


def saved_config(folder: str) -> Path:
    """The config of a run that is to be resumed."""
    path = Path(folder) / record.CONFIG_FILE
    if not folder or not path.is_file():
        begun = sorted(
            Path("runs").glob(f"**/{record.CONFIG_FILE}"), key=lambda found: found.stat().st_mtime
        )
        hint = f"; the latest one here is {begun[-1].parent}" if begun else ""
        raise InputError(
            f"--resume {folder}: expected the folder of a run, with its {record.CONFIG_FILE}{hint}"
        )
    return path


def parsed_shard(shard: str) -> tuple[int, int]:
    """``0/8`` -> 0, 8."""
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"shard={shard}: expected I/N with I from 0 to N-1, such as 0/8")
    return int(found[1]), int(found[2])


def unused(folder: str) -> str:
    """Make a folder that nobody else has: a run that began in the same second may have that name already."""
    for number in itertools.count(1):
        name = folder if number == 1 else f"{folder}-{number}"
        with suppress(FileExistsError):
            Path(name).mkdir(parents=True)
            return name
    raise AssertionError


class CLI(LightningCLI):
    """One run: a module, a data module, a trainer, and the callbacks that write its results."""

    run_folder = "runs"
    record: type[RunRecord] | None = RunRecord
    resumed = False

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ActionConfigFile,
            help="Path or name of a config; a later one overrides.",
        )
        parser.add_argument(
            "--base", type=str | None, help=SUPPRESS
        )  # in config files; with_config_paths resolves it
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--resume",
            type=str | None,
            help="Folder of a run: compute what is missing of it, and nothing else.",
        )
        parser.add_argument(
            "--shard",
            type=str | None,
            help="I/N, I from 0: every N-th image, from the I-th on (docs/cluster.md).",
        )
        parser.add_lightning_class_args(RunProgress, "progress")
        parser.add_lightning_class_args(PictureWriter, "pictures")
        parser.add_lightning_class_args(TrajectoryLogger, "trajectory")
        parser.add_lightning_class_args(
            ScoreWriter, "scores"
        )  # after the pictures: what has a score has been drawn
        parser.add_lightning_class_args(ThroughputMonitor, "throughput")
        parser.add_lightning_class_args(MetricsTable, "table")
        parser.add_lightning_class_args(ReportPage, "page")
        parser.add_lightning_class_args(ReconstructionLogger, "reconstructions")

    def before_instantiate_classes(self) -> None:
        resume = self.config.pop("resume", None)
        if self.config.get("shard"):
            parsed_shard(self.config.shard)
        self.config.base = None  # what is saved stands for itself
        self.folder, self.resumed = self.choose_folder(resume)
        self.config.trainer.default_root_dir = (
            None  # so that the saved config begins a run elsewhere
        )
        if self.resumed:
            self.check_resumed()

    def choose_folder(self, resume: str | None) -> tuple[str, bool]:
        """Where the run goes, and whether it has begun there: told by --resume, or by itself in a requeued SLURM job."""
        self.own_folder = False
        given = self.config.trainer.default_root_dir
        if resume is not None:
            if given is not None and Path(given).resolve() != Path(resume).resolve():
                saved = (
                    yaml.safe_load(saved_config(resume).read_text())
                    .get("trainer", {})
                    .get("default_root_dir")
                )
                if given != saved:  # else it is the run's own, which may have been moved
                    raise InputError(
                        f"--resume {resume} goes on in that folder; leave out trainer.default_root_dir={given}"
                    )
            return resume, True
        job = record.slurm_job_id()
        if given is not None:
            return given, job is not None and record.read_record(given).get("sessions", [{}])[
                -1
            ].get("slurm_job") == job
        if job is not None and int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0:
            for folder in sorted(Path(self.run_folder).glob(f"*_job{job}")):
                return str(folder), (folder / record.RECORD_FILE).exists()
        self.own_folder = True
        return f"{self.run_folder}/{datetime.now():%Y-%m-%d_%H-%M-%S}" + (
            f"_job{job}" if job else ""
        ), False

    def check_resumed(self) -> None:
        """Raise an `InputError` where scores would not be those that the run began with."""
        begun = record.read_record(self.folder).get("config")
        if begun is None:
            begun = yaml.safe_load(saved_config(self.folder).read_text())
        settings = self.settings()
        if why := record.first_difference(begun, settings):
            raise InputError(
                f"run {self.folder} cannot go on: {why}; leave it as it was, or begin another run"
            )
        if settings["trainer"]["limit_test_batches"] is not None:
            raise InputError(
                f"run {self.folder} cannot go on: which images trainer.limit_test_batches leaves depends on what was done before; "
                "data.limit can be resumed"
            )

    def settings(self) -> dict[str, Any]:
        """All of them, as in a saved config."""
        return yaml.safe_load(self.parser.dump(self.config, skip_none=False))

    def instantiate_classes(self) -> None:
        with construction_errors():
            super().instantiate_classes()
        self.data = OODData.wrap(self.datamodule)
        if shard := self.config.get("shard"):
            self.data.use_shard(parsed_shard(shard))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.own_folder and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.folder = unused(self.folder)
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            lock_run_folder(self.folder)
        self.config_init.trainer.default_root_dir = (
            self.folder
        )  # not in self.config: what is saved can be run again elsewhere
        if not self.resumed and part_files(Path(self.folder)):
            raise InputError(
                f"run folder {self.folder}: holds the results of another run; --resume it, choose another, or remove them"
            )
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise InputError(f"trainer: {error}") from error
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ScoreWriter):
                callback.resume = self.resumed
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                logger.attach(
                    self.folder, self.settings(), record.read_record(self.folder).get("wandb_run")
                )
        return trainer
