"""The command line of the commands that run a model: ``test``, ``calibrate`` and ``analyze``.

It is LightningCLI's, plus configs by name, a folder for each run, ``--resume`` and ``--shard``.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import SUPPRESS, ActionConfigFile
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
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
from ..config import (
    config_name,
    config_names,
    find_config,
    read,
    subclasses_listed_once,
    with_bases,
)
from ..config_errors import check_values, explain, import_classes, parser_errors
from ..datamodules import import_data_modules
from ..datamodules.base import OODData
from ..errors import InputError
from ..evaluation.inversion import InversionAnalysis
from ..evaluation.label_effect import LabelAnalysis
from ..evaluation.module import DiffGuardModule
from ..evaluation.noise_accuracy import Analysis
from ..runs import record
from ..runs.lock import lock_new_run_folder, lock_run_folder
from ..runs.shards import parse_shard
from ..runs.store import part_files
from ..yaml_file import check_arguments, make_parser_read_settings
from .trainer import check_seed, check_trainer, prepare_trainer_settings, trainer_errors

DEFAULT_CONFIG = "digits_ldm"
IRRELEVANT_WARNINGS = (
    # We give LightningCLI arguments; it warns, for it would rather read sys.argv.
    ".*args parameter is intended to run from within Python.*",
    # The digits are in memory, so that no worker is needed.
    ".*does not have many workers.*",
    # Lightning and jsonargparse call what torch and jsonargparse have deprecated.
    ".*LeafSpec.*",
    r"\s*.*(skip_none|instantiate_classes|add_instantiator).* deprecated",
    # Every value that is logged has been gathered from all ranks already.
    ".*sync_dist=True.*",
)
TRAINER_DEFAULTS = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    # Lightning's sampler repeats images to pad; the data modules distribute theirs.
    "use_distributed_sampler": False,
}
NO_SETTINGS = ("help", "print_config", SUPPRESS)
"""Arguments that are never what somebody misspelt."""

AnyCLI = TypeVar("AnyCLI", bound="RunCLI")


def command_line(
    kind: type[AnyCLI], args: Sequence[str] | None, callbacks: list[Callback], command: str
) -> AnyCLI:
    """Build module, data module and trainer from command-line arguments.

    Args:
        kind: Class that declares the settings of the command.
        args: Arguments of the command. Defaults to those of the process.
        callbacks: Callbacks of every run, besides those that settings describe.
        command: Name of the command. Runs go to ``runs/CONFIG/``, those of commands other than
            ``test`` to ``runs/COMMAND/CONFIG/``.
    """
    resolved, run_name = resolve_configs(sys.argv[1:] if args is None else args)
    # Lightning starts the processes of further devices with sys.argv, which begins with the name of
    # the command unless the process runs `python -m diffguard_pl.test`.
    words = command.split()
    is_named = sys.argv[1 : 1 + len(words)] == words
    sys.argv[1:] = [*(words if is_named else []), *resolved]
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)
    if "SLURM_JOB_ID" not in os.environ:
        # Nobody asked for SLURM: this is the login node of a cluster, say.
        warnings.filterwarnings("ignore", "The `srun` command is available")
    # devices, the seed: run.json has them
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Configs and flags may name these classes without their modules.
    import_data_modules()
    import_classes("model.guidance")
    make_parser_read_settings()
    check_arguments(resolved)
    return kind(
        DiffGuardModule,
        LightningDataModule,
        runs="runs" if command == "test" else "/".join(["runs", *words]),
        run_name=run_name,
        args=resolved,
        subclass_mode_data=True,
        run=False,
        auto_configure_optimizers=False,
        seed_everything_default=100,
        save_config_callback=kind.save_config,
        trainer_defaults=TRAINER_DEFAULTS | {"callbacks": callbacks},
        parser_kwargs={"prog": f"diffguard-pl {command}", "description": kind.description},
    )


def resolve_configs(args: Sequence[str]) -> tuple[list[str], str]:
    """Replace the names of configs by the paths of their files, each after those that it builds on.

    Args:
        args: Arguments of the command. ``--resume FOLDER`` stands for the config of that run;
            without any config, the default one is inserted.

    Returns:
        The arguments, and the name of the first config.
    """
    resolved: list[str] = []
    names: list[str] = []
    rest = list(args)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option in ("-c", "--config", "--resume") and not equals:
            value = rest.pop(0) if rest else ""
        if option == "--resume":
            saved = saved_config(value)
            read(saved)
            resolved = ["--config", str(saved), *resolved, "--resume", value]
            names.append("resumed")
        elif option in ("-c", "--config"):
            if not value:
                raise InputError(
                    f"{option}: needs a config; choose from: {', '.join(config_names())}"
                )
            files = with_bases(value)
            names.append(config_name(files[-1]))
            for file in files:
                resolved += ["--config", str(file)]
        elif option == "--base":
            raise InputError("--base: works only in config files; repeat --config instead")
        else:
            resolved.append(option + equals + value)
    if not names:
        return ["--config", str(find_config(DEFAULT_CONFIG)), *resolved], DEFAULT_CONFIG
    return resolved, names[0]


def saved_config(folder: str) -> Path:
    """Return the path of the config that a run has saved.

    Raises:
        InputError: the folder holds no run; the message names the latest one.
    """
    path = Path(folder) / record.CONFIG_FILE
    if not folder or not path.is_file():
        runs = sorted(
            Path("runs").glob(f"**/{record.CONFIG_FILE}"), key=lambda found: found.stat().st_mtime
        )
        hint = f"; the latest run here is {runs[-1].parent}" if runs else ""
        raise InputError(
            f"--resume {folder}: must be the folder of a run, with its {record.CONFIG_FILE}{hint}"
        )
    return path


def find_run_of_job(runs: Path, job: str, settings: dict[str, Any]) -> Path | None:
    """Return the folder in which a requeued SLURM job began the run of a config, or None.

    The job may run several configs, or one config several times. It repeats its commands, so each
    of them takes up the first folder of its config that none has taken up since the restart.

    Args:
        runs: Folder of the runs.
        job: ID of the job.
        settings: All settings of the run.
    """
    of_settings, of_scores = [], []
    for folder in sorted(runs.glob(f"*_job{job}*")):
        if not re.search(rf"_job{re.escape(job)}(-\d+)?$", folder.name):
            continue
        try:
            begun = record.read_record(folder)
        except InputError:  # is reported if the run is resumed by name
            continue
        config, session = begun.get("config"), record.last_session(begun)
        is_taken = session.get("slurm_restarts") == record.slurm_restarts()
        if config is None or is_taken:
            continue
        if config == settings:
            of_settings.append(folder)
        elif record.first_difference(config, settings) is None:
            of_scores.append(folder)
    return next(iter(of_settings + of_scores), None)


class Parser(LightningArgumentParser):
    """LightningCLI's parser, which answers a mistake in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # The parser of a class inside a setting raises; the outermost one ends the process.
        if not self.exit_on_error:
            super().error(message, ex)
        settings = {action.dest for action in self._actions} - set(NO_SETTINGS)
        self.exit(2, f"error: {explain(message, settings)}\n")


class RunCLI(LightningCLI):
    """A run: module, data module, trainer, and the callbacks that write its results.

    Args:
        runs: Folder of all runs of the command.
        run_name: Folder below it of the runs with this config.
        args, kwargs: Arguments of LightningCLI.
    """

    save_config: type[RunRecord] | None = RunRecord
    description = "Evaluate DiffGuard on in-distribution and OOD datasets."

    def __init__(self, *args: Any, runs: str, run_name: str, **kwargs: Any):
        self.runs = f"{runs}/{run_name}"
        self.run_name = run_name
        super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = Parser(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ActionConfigFile,
            help="Path or name of a config; later ones override earlier ones.",
        )
        # Only config files have it, and resolve_configs follows it.
        parser.add_argument("--base", type=str | None, help=SUPPRESS)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--resume",
            type=str | None,
            help="Folder of a run to resume; computes only what is missing.",
        )
        parser.add_argument(
            "--shard",
            type=str | None,
            help="I/N with I from 0: use only every N-th image, from the I-th on.",
        )
        parser.add_lightning_class_args(RunProgress, "progress")
        # Pictures before scores: an image that has a score has its picture, too.
        parser.add_lightning_class_args(PictureWriter, "pictures")
        parser.add_lightning_class_args(TrajectoryLogger, "trajectory")
        parser.add_lightning_class_args(ScoreWriter, "scores")
        parser.add_lightning_class_args(ThroughputMonitor, "throughput")
        parser.add_lightning_class_args(MetricsTable, "table")
        parser.add_lightning_class_args(ReportPage, "page")
        parser.add_lightning_class_args(ReconstructionLogger, "reconstructions")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with subclasses_listed_once():
            with parser_errors():  # of a value that Python cannot convert
                super().parse_arguments(parser, args)
            check_values(parser, self.config)
        check_seed(self.config.seed_everything)

    def before_instantiate_classes(self) -> None:
        prepare_trainer_settings(self.config.trainer)
        resume = self.config.pop("resume", None)
        if self.config.get("shard"):
            parse_shard(self.config.shard)
        given = self.config.trainer.default_root_dir
        # The saved config is complete, and a run of it goes to a folder of its own.
        self.config.base = None
        self.config.trainer.default_root_dir = None
        self.choose_folder(resume, given)
        if self.resumed:
            self.check_resumable()

    def choose_folder(self, resume: str | None, given: str | None) -> None:
        """Set ``folder``, ``resumed`` and ``is_new_folder``.

        ``resumed`` is whether the run has begun in the folder, ``is_new_folder`` whether the folder
        is still to be made.

        Args:
            resume: Folder that ``--resume`` names.
            given: Setting ``trainer.default_root_dir``.
        """
        job = record.slurm_job_id()
        self.is_new_folder = False
        if resume is not None:
            self._check_same_folder(resume, given)
            self.folder, self.resumed = resume, True
            return
        if given is not None:
            session = record.last_session(record.read_record(given))
            # A requeued SLURM job resumes its own run.
            self.folder, self.resumed = given, job is not None and session.get("slurm_job") == job
            return
        if job is not None and record.slurm_restarts() > 0:
            folder = find_run_of_job(Path(self.runs), job, self.settings())
            if folder is not None:
                self.folder, self.resumed = str(folder), True
                return
        suffix = f"_job{job}" if job else ""
        self.folder = f"{self.runs}/{datetime.now():%Y-%m-%d_%H-%M-%S}{suffix}"
        self.resumed, self.is_new_folder = False, True

    def check_resumable(self) -> None:
        """Raise an `InputError` where further scores would differ from the run's earlier ones."""
        begun = record.read_record(self.folder).get("config")
        if begun is None:
            begun = read(saved_config(self.folder))
        settings = self.settings()
        if why := record.first_difference(begun, settings):
            raise InputError(
                f"run {self.folder}: cannot be resumed: {why}; undo the change, or begin another "
                "run"
            )
        if settings["trainer"]["limit_test_batches"] is not None:
            raise InputError(
                f"run {self.folder}: cannot be resumed with trainer.limit_test_batches, whose "
                "images depend on what was computed before; use data.limit"
            )

    def settings(self) -> dict[str, Any]:
        """Return all settings, as in a saved config."""
        return yaml.safe_load(self.parser.dump(self.config, skip_none=False))

    def instantiate_classes(self) -> None:
        with parser_errors():
            super().instantiate_classes()
        self.data = OODData.wrap(self.datamodule)
        if shard := self.config.get("shard"):
            self.data.use_shard(parse_shard(shard))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        # Set where classes are made from, not in self.config, which is saved.
        self.config_init.trainer.default_root_dir = self.folder
        trainer = self._trainer_of_test(**kwargs)
        # Lightning takes the rank from RANK and the like, even if no launcher has set them. Only
        # the trainer knows which launcher is at work.
        rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            self.lock_folder()
            # Another run may have taken the name meanwhile.
            trainer._default_root_dir = self.folder  # type: ignore[attr-defined]
        if not self.resumed and part_files(Path(self.folder)):
            raise InputError(
                f"run folder {self.folder}: holds the results of another run; --resume it, choose "
                "another folder, or remove them"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ScoreWriter):
                callback.resume = self.resumed
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):
                wandb_run = record.read_record(self.folder).get("wandb_run")
                logger.attach(self.folder, self.settings(), wandb_run)
        return trainer

    def lock_folder(self) -> None:
        """Lock the folder of the run, which is created if it does not exist.

        Raises:
            InputError: It cannot be written, or another run is writing to it.
        """
        if self.is_new_folder:
            self.folder = str(lock_new_run_folder(self.folder))
        else:
            lock_run_folder(self.folder)

    def _trainer_of_test(self, **kwargs: Any) -> Trainer:
        """Return the trainer, with settings of a training replaced by what they mean for a test."""
        settings = self.config_init.trainer
        if isinstance(self.datamodule, OODData):
            settings.use_distributed_sampler = False  # it distributes the images itself
        # Lightning refuses the setting beside a progress bar, and the bar itself can be disabled.
        is_quiet = settings.enable_progress_bar is False
        settings.enable_progress_bar = None
        with trainer_errors():
            trainer = super().instantiate_trainer(**kwargs)
            check_trainer(trainer)
        if is_quiet and trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.disable()
        return trainer

    def _check_same_folder(self, resume: str, given: str | None) -> None:
        """Raise an `InputError` if ``--resume`` and ``trainer.default_root_dir`` contradict."""
        if given is None or Path(given).resolve() == Path(resume).resolve():
            return
        saved = read(saved_config(resume)).get("trainer")
        # A folder that has been moved since still has its old path in the config.
        if given != (saved.get("default_root_dir") if isinstance(saved, dict) else None):
            raise InputError(
                f"--resume {resume}: the run stays in that folder; leave out "
                f"trainer.default_root_dir={given}"
            )


class AnalyzeCLI(RunCLI):
    """The settings of a test, with those of the analysis in place of the callbacks'."""

    save_config = None
    analysis: type = Analysis

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(self.analysis, "analysis")


class InversionCLI(AnalyzeCLI):
    """The settings of ``analyze inversion``."""

    analysis = InversionAnalysis


class LabelCLI(AnalyzeCLI):
    """The settings of ``analyze labels``."""

    analysis = LabelAnalysis
