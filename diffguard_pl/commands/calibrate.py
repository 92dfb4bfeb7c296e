"""The command ``diffguard-pl calibrate``: from a config to a detector file.

It scores in-distribution validation images, the data module's ``calibration`` dataset, and writes
``detector.json`` with the threshold that they set. Scores are stored like those of a test, so that
a calibration can be interrupted, resumed, and run on many devices.
"""

import os
from pathlib import Path

import torch
from pytorch_lightning.cli import LightningArgumentParser

from ..callbacks import GracefulStop, RunProgress, ScoreWriter, ThroughputMonitor
from ..deploy.detector import PRECISIONS, Detector
from ..errors import InputError, choose
from ..names import CALIBRATION
from ..runs.lock import releasing_locks
from ..runs.record import launch_command
from ..runs.shards import parse_shard
from ..runs.signals import StopRequested
from ..runs.store import read_scores
from ..scores.conformal import Threshold, check_count, check_tpr
from .cli import RunCLI, command_line
from .errors import end_of_stopped_run, end_with_images_left_out, one_line_errors

FILE = "detector.json"


class CalibrateCLI(RunCLI):
    """The settings of a test without pictures, table and page, and those of the threshold."""

    description = "Calibrate a threshold on in-distribution images; write a detector file."

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--tpr",
            type=float,
            default=0.95,
            help="Fraction of in-distribution images to accept.",
        )
        parser.add_argument(
            "--score",
            type=str | None,
            help="Deciding score. Defaults to cascade, else fusion, else the first discrepancy.",
        )
        parser.add_argument(
            "--out",
            type=str | None,
            help=f"Path of the detector file. Defaults to {FILE} in the folder of the run.",
        )
        parser.add_argument(
            "--resume",
            type=str | None,
            help="Folder of a calibration to resume; computes only what is missing.",
        )
        parser.add_argument("--shard", type=str | None, help="Not supported by a calibration.")
        parser.add_lightning_class_args(RunProgress, "progress")
        parser.add_lightning_class_args(ScoreWriter, "scores")
        parser.add_lightning_class_args(ThroughputMonitor, "throughput")

    def before_instantiate_classes(self) -> None:
        self.tpr, self.score, self.out = (self.config.get(name) for name in ("tpr", "score", "out"))
        if self.config.get("shard"):
            parse_shard(self.config.shard)
            raise InputError("shard: a calibration needs all images; use more devices instead")
        if self.out is not None:
            check_out(Path(self.out))
        check_tpr(self.tpr)
        if self.config.model.oracle != "none":
            raise InputError(
                f"model.oracle={self.config.model.oracle}: a detector has no true labels; "
                "set it to none"
            )
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.data.include_calibration(alone=True)
        self.model.calibrating = True


def main(args: list[str] | None = None) -> None:
    """Calibrate a detector.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    with one_line_errors() as stop, releasing_locks():
        folder = ""
        try:
            cli = command_line(CalibrateCLI, args, [GracefulStop(stop)], "calibrate")
            folder = cli.folder
            _check_before_scoring(cli)
            cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        except StopRequested as stopped:
            end_of_stopped_run(stopped, folder, "calibrate")
        if cli.trainer.is_global_zero:
            _write_detector(cli)


def check_out(file: Path) -> None:
    """Raise an `InputError` where a detector file cannot be written, before any image is scored."""
    if file.exists():
        raise InputError(f"--out {file}: exists already; remove it, or choose another name")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {file}: cannot be written ({error.strerror})") from error
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"--out {file}: cannot be written (no permission)")


def describe(score: str, threshold: Threshold) -> list[str]:
    """Describe in two lines what a threshold rejects and how sure that is."""
    rejected = 100 * (1 - threshold.tpr)
    low, high = 100 * threshold.rejects_low, 100 * threshold.rejects_high
    return [
        f"{score} below {threshold.value:.6g} is rejected, from {threshold.images} in-distribution "
        f"validation images (95 % interval {threshold.low:.6g} to {threshold.high:.6g})",
        f"at most {rejected:.3g} % of in-distribution images are rejected on average over "
        f"calibrations; by this one, {low:.1f} to {high:.1f} % (95 % interval)",
    ]


def _check_before_scoring(cli: CalibrateCLI) -> None:
    """Raise an `InputError` where the detector could not be calibrated from the scores."""
    combination = cli.model.combination
    choose("precision", str(cli.trainer.precision), PRECISIONS)
    detector = Detector(
        cli.model.diffguard,
        cli.score,
        cli.tpr,
        combination.fusion,
        combination.cascade,
        class_names=cli.data.class_names,
    )
    images = len(cli.data.datasets()[CALIBRATION])
    # One half of the images sets the scale of a combination, the other its threshold.
    check_count(images // 2 if detector.is_combined else images, cli.tpr)


def _write_detector(cli: CalibrateCLI) -> None:
    """Write the detector file from the scores of the run, and describe it."""
    module, data = cli.model, cli.data
    results, _ = read_scores(cli.folder)
    scored = results[results["error"].isna()]
    left_out = len(results) - len(scored)
    detector = Detector(
        module.diffguard,
        cli.score,
        cli.tpr,
        module.combination.fusion,
        module.combination.cascade,
        data.preparation,
        module.class_names(),
        str(cli.trainer.precision),
        module.tf32,
    )
    detector.calibrate_features(torch.tensor(scored[module.score_names].to_numpy("float64")))
    detector.settings = cli.settings()["model"]
    images = {"scored": len(scored), "left_out": left_out}
    has_labels = module.ind_accuracy == module.ind_accuracy  # NaN without labels
    detector.about = {
        "config": None if cli.resumed else cli.run_name,
        "command": launch_command(),
        "accuracy": module.ind_accuracy if has_labels else None,
        "images": images | data.contents().get(CALIBRATION, {}),
    }
    # Another process may have written the file since this one checked.
    if cli.out is not None and Path(cli.out).exists():
        raise InputError(
            f"--out {cli.out}: exists by now; choose another name, with --resume {cli.folder}"
        )
    file = detector.save(cli.out or Path(cli.folder) / FILE)
    assert detector.calibrated is not None
    print("\n".join(describe(detector.score, detector.calibrated)))
    print(f"  scores: {cli.folder}/scores\ndetector: {file}")
    end_with_images_left_out(left_out)
