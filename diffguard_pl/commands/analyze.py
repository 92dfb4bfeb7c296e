"""The command ``diffguard-pl analyze``: the classifier's accuracy on noisy images (Fig. 2)."""

import math
import sys
from importlib import import_module
from pathlib import Path

from ..errors import InputError, choose
from ..runs.files import atomic_write
from ..runs.lock import releasing_locks
from ..runs.record import CONFIG_FILE
from .errors import end_with_images_left_out, one_line_errors

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
    from rich.console import Console

    from ..backbones.noisy_classifier import noisy_classifier_for
    from ..callbacks import RunProgress
    from ..evaluation.noise_accuracy import NoiseAccuracyModule
    from ..report import noise_accuracy as report
    from .cli import AnalyzeCLI, command_line

    with one_line_errors(), releasing_locks():
        cli = command_line(AnalyzeCLI, args, [RunProgress()], "analyze")
        diffguard, analysis = cli.model.diffguard, cli.config_init.analysis
        noisy_classifier = noisy_classifier_for(diffguard.backbone, analysis.noisy_classifier)
        module = NoiseAccuracyModule(diffguard, analysis, cli.data, noisy_classifier)
        cli.trainer.test(module, verbose=False)
        if not cli.trainer.is_global_zero:
            return
        if module.count == 0:
            raise InputError(
                f"{module.dataset}: none of its {module.left_out} images could be used; "
                "see `diffguard-pl data check`"
            )
        if any(math.isnan(value) for point in module.points for value in point.accuracy.values()):
            raise InputError(
                f"{module.dataset}: accuracy needs labels; choose a dataset that has them"
            )
        folder = Path(cli.trainer.default_root_dir)
        with atomic_write(folder / CONFIG_FILE) as unfinished:
            unfinished.write_text(cli.parser.dump(cli.config, skip_none=False), encoding="utf-8")
        report.write_noise_accuracy(module.points, folder / "analysis.csv")
        report.draw_noise_accuracy(module.points, module.dataset, folder / "analysis.png")
        print(f"accuracy: {folder / 'analysis.csv'}\n    plot: {folder / 'analysis.png'}")
        if noisy_classifier is not None:
            report.write_agreement(module.points, folder / "agreement.csv")
            report.draw_agreement(module.points, module.dataset, folder / "agreement.png")
            Console().print(report.agreement_table(module.points, module.dataset))
            print(f"agreement: {folder / 'agreement.csv'}\n     plot: {folder / 'agreement.png'}")
        end_with_images_left_out(module.left_out)
