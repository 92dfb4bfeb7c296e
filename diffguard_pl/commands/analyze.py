"""The command ``diffguard-pl analyze``: the classifier's accuracy on noisy images (Fig. 2)."""

import math
from pathlib import Path

from pytorch_lightning.cli import LightningArgumentParser

from ..callbacks import RunProgress
from ..errors import InputError
from ..evaluation.noise_accuracy import Analysis, NoiseAccuracyModule
from ..report.noise_accuracy import draw_noise_accuracy, write_noise_accuracy
from ..runs.files import atomic_write
from ..runs.lock import releasing_locks
from ..runs.record import CONFIG_FILE
from .cli import RunCLI, command_line
from .errors import end_with_images_left_out, one_line_errors


class AnalyzeCLI(RunCLI):
    """The settings of a test, with those of the analysis in place of the callbacks'."""

    save_config = None
    description = "Measure the classifier's accuracy on noisy images (Fig. 2 of the paper)."

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Analysis, "analysis")


def main(args: list[str] | None = None) -> None:
    """Measure the accuracy by timestep; write ``analysis.csv`` and ``analysis.png``.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    with one_line_errors(), releasing_locks():
        cli = command_line(AnalyzeCLI, args, [RunProgress()], "analyze")
        module = NoiseAccuracyModule(cli.model.diffguard, cli.config_init.analysis, cli.data)
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
            unfinished.write_text(cli.parser.dump(cli.config, skip_none=False))
        write_noise_accuracy(module.points, folder / "analysis.csv")
        draw_noise_accuracy(module.points, module.dataset, folder / "analysis.png")
        print(f"accuracy: {folder / 'analysis.csv'}\n    plot: {folder / 'analysis.png'}")
        end_with_images_left_out(module.left_out)
