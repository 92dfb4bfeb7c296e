"""From a config to a detector to deploy: ``diffguard-pl calibrate --config digits_ldm --tpr 0.95``.

It scores in-distribution validation images, the data module's ``calibration`` set, and writes ``detector.json`` with the threshold
that they set. The scores are kept as those of a test are: a calibration can be interrupted, resumed, and run on many devices.
"""

import os
import sys
from pathlib import Path

import torch
from pytorch_lightning.cli import LightningArgumentParser

from ..callbacks import GracefulStop, RunProgress, ScoreWriter, ThroughputMonitor
from ..deploy.detector import PRECISIONS, Detector
from ..errors import InputError, choose
from ..names import CALIBRATION
from ..runs.lock import releasing_locks
from ..runs.record import launch_command
from ..runs.signals import GracefulTermination, StopRequested
from ..runs.store import read_scores
from ..scores.conformal import Threshold, check_count, check_tpr
from .cli import CLI, command_line, parsed_shard
from .errors import LEFT_OUT, end, one_line_errors

FILE = "detector.json"


class CalibrateCLI(CLI):
    """The settings of a test, those of the threshold, and no pictures, table or page."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--tpr",
            type=float,
            default=0.95,
            help="Share of in-distribution images that are to be accepted.",
        )
        parser.add_argument(
            "--score",
            type=str | None,
            help="That decides; none: cascade, else fusion, else the first discrepancy.",
        )
        parser.add_argument(
            "--out",
            type=str | None,
            help=f"The detector file; none: {FILE} in the folder of the run.",
        )
        parser.add_argument(
            "--resume",
            type=str | None,
            help="Folder of a calibration: compute what is missing of it.",
        )
        parser.add_argument("--shard", type=str | None, help="Not for a calibration.")
        parser.add_lightning_class_args(RunProgress, "progress")
        parser.add_lightning_class_args(ScoreWriter, "scores")
        parser.add_lightning_class_args(ThroughputMonitor, "throughput")

    def before_instantiate_classes(self) -> None:
        self.tpr, self.score, self.out = (self.config.get(name) for name in ("tpr", "score", "out"))
        if self.config.get("shard"):
            parsed_shard(self.config.shard)
            raise InputError(
                "shard: a calibration needs all its images; give it more devices in place of shards"
            )
        if self.out is not None:
            check_out(Path(self.out))
        check_tpr(self.tpr)
        if self.config.model.oracle != "none":
            raise InputError(
                f"model.oracle={self.config.model.oracle}: a detector knows no true labels; set it to none"
            )
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.data.include_calibration(alone=True)
        self.model.calibrating = True


def main(args: list[str] | None = None) -> None:
    """Calibrate as the command line says."""
    with one_line_errors(), releasing_locks(), GracefulTermination().handling_signals() as stop:
        folder = ""
        try:
            cli = command_line(
                CalibrateCLI, args, callbacks=[GracefulStop(stop)], run_kind="calibrate"
            )
            folder = cli.folder
            _check(cli)
            cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        except StopRequested as stopped:
            end(stopped, folder, "calibrate")
        if cli.trainer.is_global_zero:
            _write(cli)


def check_out(file: Path) -> None:
    """Raise an `InputError` where a detector file cannot be written, before it takes work to find out."""
    if file.exists():
        raise InputError(f"--out {file}: is there already; remove it, or give another name")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {file}: cannot be written ({error.strerror})") from error
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"--out {file}: cannot be written (no permission)")


def _check(cli: CalibrateCLI) -> None:
    """Say what is wrong before the work is done."""
    combination = cli.model.combination
    choose("precision", str(cli.trainer.precision), PRECISIONS)
    names = cli.data.class_names
    detector = Detector(
        cli.model.diffguard,
        cli.score,
        cli.tpr,
        combination.fusion,
        combination.cascade,
        class_names=names,
    )
    images = len(cli.data.datasets()[CALIBRATION])
    check_count(images // 2 if detector.is_combined else images, cli.tpr)


def _write(cli: CalibrateCLI) -> None:
    """The detector file, from the scores of the run."""
    frame, _ = read_scores(cli.folder)
    scored, module, data = frame[frame["error"].isna()], cli.model, cli.data
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
    left_out = len(frame) - len(scored)
    detector.about = {
        "config": None if cli.resumed else cli.run_folder.rpartition("/")[2],
        "command": launch_command(),
        "accuracy": None if module.ind_accuracy != module.ind_accuracy else module.ind_accuracy,
        "images": {"scored": len(scored), "left_out": left_out}
        | data.contents().get(CALIBRATION, {}),
    }
    if cli.out is not None and Path(cli.out).exists():  # somebody else's, since it began
        raise InputError(
            f"--out {cli.out}: is there by now; give another name, and --resume {cli.folder}"
        )
    file = detector.save(cli.out or Path(cli.folder) / FILE)
    assert detector.calibrated is not None
    print("\n".join(described(detector.score, detector.calibrated)))
    print(f"  scores: {cli.folder}/scores\ndetector: {file}")
    if left_out:
        print(
            f"{left_out} images could not be used; the column error of the scores says why",
            file=sys.stderr,
        )
        sys.exit(LEFT_OUT)


def described(score: str, found: Threshold) -> list[str]:
    """In words, line by line, what a threshold promises."""
    wrongly = 100 * (1 - found.tpr)
    return [
        f"{score} below {found.value:.6g} is rejected, by {found.images} in-distribution validation images "
        f"(95 % interval {found.low:.6g} to {found.high:.6g})",
        f"of in-distribution images at most {wrongly:.3g} % are rejected, on average over calibrations; with this one, "
        f"{100 * found.rejects_low:.1f} to {100 * found.rejects_high:.1f} % (95 % interval)",
    ]
