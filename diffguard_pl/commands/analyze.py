"""The command ``diffguard-pl analyze``: the classifier's accuracy on noisy images (Fig. 2)."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import choose
from .errors import one_line_errors

if TYPE_CHECKING:
    from ..datamodules.base import OODData
    from ..diffguard import DiffGuard
    from ..evaluation.noise_accuracy import Analysis

HELP = """\
usage: diffguard-pl analyze [-h] [-c CONFIG] [--SECTION.SETTING VALUE ...]
       diffguard-pl analyze inversion | labels | sweep ...

Measure the classifier's accuracy on noisy images (Fig. 2 of the paper). With a name, the analysis
of another figure; diffguard-pl analyze NAME --help describes it:
  inversion             Similarity of images to themselves along the inversion (Fig. 4).
  labels                Reconstructions under true and false labels, with each part of the guidance
                        left out (Fig. 6).
  sweep                 AUROC against one or two settings (Fig. 7).

options:
  -h, --help            show this help message and exit
  -c CONFIG, --config CONFIG
                        Path or name of a config; later ones override earlier ones.
  --analysis.every EVERY
                        Steps of the schedule between two points. Defaults to a tenth of them.
  --analysis.cutouts CUTOUTS
                        Number of crops of each image. (default: 8)
  --analysis.cutout_size CUTOUT_SIZE
                        Side of the smallest crop. Defaults to seven eighths of the image's.
  --analysis.seed SEED  Seed of the noise and of the crops. (default: 42)
  --analysis.noisy_classifier CHECKPOINT
                        Classifier of noisy images to compare with (Fig. 2A), such as
                        gdm-classifier256, or the class of one. Defaults to none.

Settings of model, data and trainer are those of a test: diffguard-pl test --help
"""
"""Text of ``--help``. The parser's own would need torch, Lightning and every class of a setting."""


FIGURES = ("inversion", "labels", "sweep")
"""Analyses with a name, each in ``commands/analyze_NAME.py``; without one, it is that of Fig. 2."""


def main(args: list[str] | None = None) -> None:
    """Measure the accuracy by timestep; write ``analysis.csv`` and ``analysis.png``.

    With ``analysis.noisy_classifier`` also ``agreement.csv`` and ``agreement.png``.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    given = sys.argv[1:] if args is None else args
    if given and not given[0].startswith("-"):
        with one_line_errors():
            choose("analysis", given[0], FIGURES)
            figure = import_module(f".analyze_{given[0]}", __package__)
            figure.main(list(given[1:]))
        return
    if {"-h", "--help"} & set(given):
        print(HELP, end="")
        return
    # The help is printed without these, which import torch and Lightning.
    from ..backbones.noisy_classifier import noisy_classifier_for
    from ..evaluation.noise_accuracy import NoiseAccuracyModule
    from ..report import noise_accuracy as report
    from ..report.tables import terminal
    from .analyses import analyse
    from .cli import AnalyzeCLI

    def build(
        diffguard: "DiffGuard", analysis: "Analysis", data: "OODData", tf32: bool
    ) -> NoiseAccuracyModule:
        noisy_classifier = noisy_classifier_for(diffguard.backbone, analysis.noisy_classifier)
        return NoiseAccuracyModule(diffguard, analysis, data, noisy_classifier, tf32)

    def write(module: NoiseAccuracyModule, folder: Path) -> None:
        points, dataset = module.points, module.datasets[0]
        table, picture = folder / "analysis.csv", folder / "analysis.png"
        report.write_noise_accuracy(points, table)
        report.draw_noise_accuracy(points, dataset, picture)
        print(f"accuracy: {table}\n    plot: {picture}")
        if module.noisy_classifier is not None:
            table, picture = folder / "agreement.csv", folder / "agreement.png"
            report.write_agreement(points, table)
            report.draw_agreement(points, dataset, picture)
            terminal().print(report.agreement_table(points, dataset))
            print(f"agreement: {table}\n     plot: {picture}")

    analyse(AnalyzeCLI, given, "analyze", build, write)
